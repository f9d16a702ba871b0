//! Makes Go's semantics explicit in a parsed template, so that `gotmpl` runs it as Go would.
//!
//! | written | becomes | because `gotmpl` |
//! |---|---|---|
//! | `.A.B`, `$x.A`, `(…).A` | `__get base "A.B"` | gives nil for a missing label |
//! | `.T.Format "15:04"`, `x \| .M` | `__call base "T.Format" "15:04"` | has no methods |
//! | `{{ pipeline }}` | `{{ pipeline \| __print }}` | prints floats as Rust does |
//! | body of `range`, `define` | `{{ $__step := __step }}` first | bounds loops, not nested templates |
//!
//! It also refuses unknown functions and variables, which Go's parser does and `gotmpl`'s does not.

use super::funcs;
use gotmpl::parse::{ActionNode, BranchNode, CommandNode, DefineNode, Expr, ListNode, Node, PipeNode, Pos, SmolStr, TemplateNode};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What [`rewrite`] makes of a template.
pub(super) struct Rewritten {
    pub(super) main: ListNode,
    pub(super) defines: Vec<DefineNode>,
    /// Whether running it needs the functions bound to one evaluation.
    pub(super) bound: bool,
}

/// Rewrites a whole template.
///
/// # Errors
/// `line: reason` for functions, variables and templates that do not exist.
pub(super) fn rewrite(name: &str, main: ListNode, defines: Vec<DefineNode>) -> Result<Rewritten, String> {
    let templates = defines.iter().map(|d| d.name.clone()).chain([SmolStr::from(name)]).collect();
    let mut rewriter = Rewriter { templates, scopes: Vec::new(), bound: false };
    let main = rewriter.body(main)?;
    let mut done = Vec::with_capacity(defines.len());
    for define in defines {
        let mut body = rewriter.body(define.body)?;
        body.nodes.insert(0, step(define.pos));
        done.push(DefineNode { body, ..define });
    }
    Ok(Rewritten { main, defines: done, bound: rewriter.bound })
}

struct Rewriter {
    templates: BTreeSet<SmolStr>,
    scopes: Vec<Vec<SmolStr>>,
    bound: bool,
}

type Res<T> = Result<T, String>;

impl Rewriter {
    /// A template's body: it sees nothing but `$`.
    fn body(&mut self, list: ListNode) -> Res<ListNode> {
        self.scopes = vec![vec![SmolStr::from("$")]];
        self.list(list)
    }

    fn list(&mut self, list: ListNode) -> Res<ListNode> {
        let nodes = list.nodes.into_iter().map(|n| self.node(n)).collect::<Res<Vec<_>>>()?;
        Ok(ListNode { pos: list.pos, nodes })
    }

    fn node(&mut self, node: Node) -> Res<Node> {
        Ok(match node {
            Node::List(list) => Node::List(self.list(list)?),
            Node::Action(action) => Node::Action(self.action(action)?),
            Node::If(branch) => Node::If(self.branch(branch, false)?),
            Node::With(branch) => Node::With(self.branch(branch, false)?),
            Node::Range(branch) => {
                self.bound = true;
                Node::Range(self.branch(branch, true)?)
            }
            Node::Template(call) => Node::Template(self.template(call)?),
            same @ (Node::Text(_) | Node::Define(_) | Node::Break(_) | Node::Continue(_)) => same,
        })
    }

    fn action(&mut self, action: ActionNode) -> Res<ActionNode> {
        let mut pipe = self.pipe(action.pipe)?;
        if pipe.decl.is_empty() {
            pipe.commands.push(CommandNode { pos: action.pos, args: vec![identifier(action.pos, funcs::PRINT)] });
        }
        Ok(ActionNode { pos: action.pos, pipe })
    }

    fn branch(&mut self, branch: BranchNode, is_loop: bool) -> Res<BranchNode> {
        self.scopes.push(Vec::new());
        let pipe = self.pipe(branch.pipe)?;
        let mut body = self.scoped(branch.body)?;
        if is_loop {
            body.nodes.insert(0, step(branch.pos));
        }
        let else_body = branch.else_body.map(|list| self.scoped(list)).transpose()?;
        self.scopes.pop();
        Ok(BranchNode { pos: branch.pos, pipe, body, else_body })
    }

    fn scoped(&mut self, list: ListNode) -> Res<ListNode> {
        self.scopes.push(Vec::new());
        let list = self.list(list);
        self.scopes.pop();
        list
    }

    fn template(&mut self, call: TemplateNode) -> Res<TemplateNode> {
        self.bound = true;
        if !self.templates.contains(&call.name) {
            return Err(format!("{}: template {:?} not defined", call.pos.line, call.name.as_str()));
        }
        let pipe = call.pipe.map(|pipe| self.pipe(pipe)).transpose()?;
        Ok(TemplateNode { pos: call.pos, name: call.name, pipe })
    }

    fn pipe(&mut self, pipe: PipeNode) -> Res<PipeNode> {
        let mut commands = Vec::with_capacity(pipe.commands.len() + 1);
        for (i, command) in pipe.commands.into_iter().enumerate() {
            commands.push(self.command(command, i > 0)?);
        }
        for name in &pipe.decl {
            if pipe.is_assign {
                self.variable(pipe.pos, name)?;
            } else if let Some(scope) = self.scopes.last_mut() {
                scope.push(name.clone());
            }
        }
        Ok(PipeNode { pos: pipe.pos, decl: pipe.decl, commands, is_assign: pipe.is_assign })
    }

    fn command(&mut self, command: CommandNode, piped: bool) -> Res<CommandNode> {
        let has_args = piped || command.args.len() > 1;
        let mut args = command.args.into_iter();
        let first = args.next().ok_or_else(|| format!("{}: empty command", command.pos.line))?;
        let mut out = match self.split_chain(first)? {
            (base, None) => vec![base],
            (base, Some(path)) => {
                let function = if has_args { funcs::CALL } else { funcs::GET };
                let pos = base.pos();
                vec![identifier(pos, function), base, Expr::String(pos, path)]
            }
        };
        for arg in args {
            out.push(self.expr(arg)?);
        }
        Ok(CommandNode { pos: command.pos, args: out })
    }

    fn expr(&mut self, expr: Expr) -> Res<Expr> {
        let (base, path) = self.split_chain(expr)?;
        let Some(path) = path else { return Ok(base) };
        let pos = base.pos();
        let args = vec![identifier(pos, funcs::GET), base, Expr::String(pos, path)];
        Ok(Expr::Pipe(pos, PipeNode { pos, decl: Vec::new(), commands: vec![CommandNode { pos, args }], is_assign: false }))
    }

    /// The expression without its field chain, and the chain as `A.B`.
    fn split_chain(&mut self, expr: Expr) -> Res<(Expr, Option<Arc<str>>)> {
        Ok(match expr {
            Expr::Field(pos, fields) => (Expr::Dot(pos), joined(&fields)),
            Expr::Variable(pos, name, fields) => {
                self.variable(pos, &name)?;
                (Expr::Variable(pos, name, Vec::new()), joined(&fields))
            }
            Expr::Chain(pos, inner, fields) => {
                let inner = self.expr(*inner)?;
                let base = match inner {
                    Expr::Identifier(..) => {
                        let commands = vec![CommandNode { pos, args: vec![inner] }];
                        Expr::Pipe(pos, PipeNode { pos, decl: Vec::new(), commands, is_assign: false })
                    }
                    other => other,
                };
                (base, joined(&fields))
            }
            Expr::Identifier(pos, name) => {
                self.function(pos, &name)?;
                (Expr::Identifier(pos, name), None)
            }
            Expr::Pipe(pos, pipe) => (Expr::Pipe(pos, self.pipe(pipe)?), None),
            same @ (Expr::Dot(_) | Expr::String(..) | Expr::Number(..) | Expr::Bool(..) | Expr::Nil(_)) => (same, None),
        })
    }

    fn function(&mut self, pos: Pos, name: &SmolStr) -> Res<()> {
        if funcs::is_bound(name) {
            self.bound = true;
        } else if !funcs::is_pure(name) {
            return Err(format!("{}: function {:?} not defined", pos.line, name.as_str()));
        }
        Ok(())
    }

    fn variable(&self, pos: Pos, name: &SmolStr) -> Res<()> {
        if self.scopes.iter().flatten().any(|known| known == name) {
            return Ok(());
        }
        Err(format!("{}: undefined variable {:?}", pos.line, name.as_str()))
    }
}

fn joined(fields: &[SmolStr]) -> Option<Arc<str>> {
    if fields.is_empty() { None } else { Some(Arc::from(fields.join("."))) }
}

fn identifier(pos: Pos, name: &'static str) -> Expr {
    Expr::Identifier(pos, SmolStr::new_static(name))
}

/// `{{ $__step := __step }}`: counts, prints nothing.
fn step(pos: Pos) -> Node {
    let commands = vec![CommandNode { pos, args: vec![identifier(pos, funcs::STEP)] }];
    let decl = vec![SmolStr::new_static("$__step")];
    Node::Action(ActionNode { pos, pipe: PipeNode { pos, decl, commands, is_assign: false } })
}
