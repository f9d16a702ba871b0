//! What stands before the planner: size, depth and length of a statement, and which statements there are at all.
//!
//! ```text
//!  text ─▶ bytes ─▶ tokens: depth, chain length, operators in all ─▶ parser ─▶ one statement ─▶ allow-list ─▶ planner
//! ```
//!
//! # Invariants
//! - **G1** A long chain `1+1+…` becomes an expression as deep as it is long; planners recurse over it and their time grows with its square.
//!   So chains, nesting and the number of operators of a statement are bounded before anything recursive sees it. Lists are not chains.
//! - **G2** Only statements that read are let through: SELECT, VALUES, WITH, TABLE, EXPLAIN, SHOW, DESCRIBE. Everything else is refused by name.
//!
//! # Not here
//! The deadline, rows and memory ([`crate::sql::SqlEngine`]); a second check of the plan (`SQLOptions`), which is made after planning.

use super::error::SqlError;
use datafusion::sql::parser::{DFParserBuilder, Statement as DFStatement};
use datafusion::sql::sqlparser::ast::{Query, SetExpr, Statement, TableFactor, Visit, Visitor};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};
use fletch_common::Limits;
use std::ops::ControlFlow;

/// Deepest nesting of parentheses, brackets and CASE.
pub(super) const SQL_DEPTH_MAX: usize = 64;

/// A statement may hold this many times [`Limits::sql_chain_max`] operators in all.
const OPERATORS_PER_CHAIN: usize = 10;

/// How deep the parser may recurse: above [`SQL_DEPTH_MAX`], because one pair of parentheses costs it several levels.
const PARSER_RECURSION_MAX: usize = 400;

/// Checks the text and parses the one statement that it holds.
///
/// # Errors
/// `Limit` for a statement that is too long, `BadData` for one that is too deep, wrong or not allowed.
pub(super) fn parse(sql: &str, limits: &Limits) -> Result<DFStatement, SqlError> {
    if sql.len() > limits.sql_bytes_max {
        return Err(SqlError::limit(format!("the statement has {} bytes; at most {} are allowed", sql.len(), limits.sql_bytes_max)));
    }
    let dialect = GenericDialect {};
    let mut tokens = Tokenizer::new(&dialect, sql)
        .tokenize_with_location()
        .map_err(|e| SqlError::bad_data(format!("syntax error: {}", e.message)).at(e.location.line, e.location.column))?;
    check_shape(&tokens, limits.sql_chain_max)?;
    number_parameters(&mut tokens)?;
    let mut parser =
        DFParserBuilder::new(tokens).with_dialect(&dialect).with_recursion_limit(PARSER_RECURSION_MAX).build().map_err(SqlError::from)?;
    let mut statements = parser.parse_statements().map_err(SqlError::from)?;
    match (statements.pop_front(), statements.len()) {
        (Some(statement), 0) => allow(&statement).map(|()| statement),
        (None, _) => Err(SqlError::bad_data("the request holds no statement")),
        (Some(_), more) => Err(SqlError::bad_data(format!("one statement per request, not {}", more + 1))),
    }
}

/// Turns `?, ?, …` into `$1, $2, …`: the planner takes all `?` for one and the same parameter.
fn number_parameters(tokens: &mut [TokenWithSpan]) -> Result<(), SqlError> {
    let (mut numbered, mut named) = (0, false);
    for TokenWithSpan { token, span } in tokens {
        let Token::Placeholder(name) = token else { continue };
        if name == "?" {
            numbered += 1;
            *name = format!("${numbered}");
        } else {
            named = true;
        }
        if named && numbered > 0 {
            let text = "parameters are written either as `?` or as `$1`, `$2`, …, not both";
            return Err(SqlError::bad_data(text).at(span.start.line, span.start.column));
        }
    }
    Ok(())
}

/// Operators of one expression, by families that make trees of their own.
#[derive(Debug, Default, Clone, Copy)]
struct Frame {
    logical: usize,
    comparison: usize,
    other: usize,
    clauses: usize,
}

fn check_shape(tokens: &[TokenWithSpan], chain_max: usize) -> Result<(), SqlError> {
    let mut frames = vec![Frame::default()];
    let mut operators = 0;
    let mut before = &Token::SemiColon;
    for TokenWithSpan { token, span } in tokens.iter().filter(|t| !matches!(t.token, Token::Whitespace(_))) {
        let at = |error: SqlError| error.at(span.start.line, span.start.column);
        // The sign of a number in a list is no operator: series ids are negative as often as not.
        let is_sign = *token == Token::Minus && matches!(before, Token::Comma | Token::LParen);
        before = token;
        if is_sign {
            continue;
        }
        let frame = frames.last_mut().expect("the outermost frame is never taken off");
        let counter = match effect_of(token) {
            Effect::None => continue,
            Effect::Open => {
                frames.push(Frame::default());
                if frames.len() > SQL_DEPTH_MAX {
                    return Err(at(SqlError::bad_data(format!("the statement is nested more than {SQL_DEPTH_MAX} deep"))));
                }
                continue;
            }
            Effect::Close => {
                if frames.len() > 1 {
                    frames.pop();
                }
                continue;
            }
            Effect::NewExpression => {
                *frame = Frame { clauses: frame.clauses, ..Frame::default() };
                continue;
            }
            Effect::Clause => {
                let clauses = frame.clauses;
                *frame = Frame { clauses, ..Frame::default() };
                &mut frame.clauses
            }
            Effect::Logical => &mut frame.logical,
            Effect::Comparison => &mut frame.comparison,
            Effect::Other => &mut frame.other,
        };
        *counter += 1;
        operators += 1;
        if *counter > chain_max {
            let text = format!("more than {chain_max} operators are chained in one expression; use IN, a join or parentheses");
            return Err(at(SqlError::bad_data(text)));
        }
        if operators > chain_max * OPERATORS_PER_CHAIN {
            let text = format!("the statement has more than {} operators", chain_max * OPERATORS_PER_CHAIN);
            return Err(at(SqlError::bad_data(text)));
        }
    }
    Ok(())
}

enum Effect {
    None,
    Open,
    Close,
    NewExpression,
    Clause,
    Logical,
    Comparison,
    Other,
}

fn effect_of(token: &Token) -> Effect {
    match token {
        Token::Word(word) if word.quote_style.is_none() => effect_of_word(word.keyword),
        Token::LParen | Token::LBracket | Token::LBrace => Effect::Open,
        Token::RParen | Token::RBracket | Token::RBrace => Effect::Close,
        Token::Comma | Token::SemiColon => Effect::NewExpression,
        Token::Eq | Token::DoubleEq | Token::Neq | Token::Lt | Token::Gt | Token::LtEq | Token::GtEq | Token::Spaceship => {
            Effect::Comparison
        }
        Token::EOF | Token::Word(_) | Token::Number(..) | Token::Whitespace(_) | Token::Placeholder(_) | Token::Period => Effect::None,
        Token::SingleQuotedString(_) | Token::DoubleQuotedString(_) | Token::NationalStringLiteral(_) | Token::HexStringLiteral(_) => {
            Effect::None
        }
        _ => Effect::Other,
    }
}

fn effect_of_word(keyword: Keyword) -> Effect {
    match keyword {
        Keyword::NoKeyword => Effect::None,
        Keyword::CASE => Effect::Open,
        Keyword::END => Effect::Close,
        Keyword::AND | Keyword::OR | Keyword::XOR | Keyword::NOT => Effect::Logical,
        Keyword::IS | Keyword::LIKE | Keyword::ILIKE | Keyword::BETWEEN | Keyword::IN | Keyword::SIMILAR | Keyword::RLIKE => {
            Effect::Comparison
        }
        Keyword::REGEXP | Keyword::OVERLAPS | Keyword::ANY | Keyword::ALL => Effect::Comparison,
        Keyword::INTERVAL | Keyword::COLLATE | Keyword::AT | Keyword::DIV | Keyword::ARRAY | Keyword::EXPLAIN | Keyword::PRIOR => {
            Effect::Other
        }
        Keyword::UNION | Keyword::EXCEPT | Keyword::INTERSECT | Keyword::MINUS | Keyword::JOIN | Keyword::PIVOT | Keyword::UNPIVOT => {
            Effect::Clause
        }
        Keyword::SELECT | Keyword::FROM | Keyword::WHERE | Keyword::GROUP | Keyword::HAVING | Keyword::ORDER | Keyword::LIMIT => {
            Effect::NewExpression
        }
        Keyword::WHEN | Keyword::THEN | Keyword::ELSE | Keyword::ON | Keyword::WITH | Keyword::VALUES => Effect::NewExpression,
        _ => Effect::None,
    }
}

/// Refuses by name every statement that does not read.
fn allow(statement: &DFStatement) -> Result<(), SqlError> {
    match statement {
        DFStatement::Statement(inner) => allow_sql(inner),
        DFStatement::Explain(explain) => match explain.statement.as_ref() {
            DFStatement::Explain(_) => Err(refused("EXPLAIN of an EXPLAIN")),
            inner => allow(inner),
        },
        DFStatement::CreateExternalTable(_) => Err(refused("CREATE EXTERNAL TABLE")),
        DFStatement::CopyTo(_) => Err(refused("COPY")),
        DFStatement::Reset(_) => Err(refused("RESET")),
    }
}

fn allow_sql(statement: &Statement) -> Result<(), SqlError> {
    match statement {
        Statement::Query(query) => {
            let mut reads = ReadsOnly { refused: None };
            // The visitor goes into subqueries and common table expressions.
            let _ = query.visit(&mut reads);
            reads.refused.map_or(Ok(()), |name| Err(refused(&name)))
        }
        Statement::Explain { statement, .. } => allow_sql(statement),
        Statement::ExplainTable { .. } | Statement::ShowTables { .. } | Statement::ShowColumns { .. } => Ok(()),
        Statement::ShowVariable { .. } | Statement::ShowFunctions { .. } | Statement::ShowCreate { .. } => Ok(()),
        Statement::ShowSchemas { .. } | Statement::ShowDatabases { .. } | Statement::ShowCatalogs { .. } => Ok(()),
        other => Err(refused(&name_of(other))),
    }
}

fn refused(name: &str) -> SqlError {
    SqlError::bad_data(format!("{name} is not allowed; the tables are read-only here: SELECT, VALUES, EXPLAIN, SHOW and DESCRIBE are"))
}

/// The first words of a statement that are keywords: `CREATE TABLE`, `INSERT INTO`, `SET`, …
fn name_of(statement: &Statement) -> String {
    let text = statement.to_string();
    let words = text.split_whitespace().take_while(|w| w.chars().all(|c| c.is_ascii_uppercase() || c == '_'));
    let name = words.take(3).collect::<Vec<_>>().join(" ");
    if name.is_empty() { "this statement".to_owned() } else { name }
}

struct ReadsOnly {
    refused: Option<String>,
}

impl ReadsOnly {
    fn stop(&mut self, name: impl Into<String>) -> ControlFlow<()> {
        self.refused = Some(name.into());
        ControlFlow::Break(())
    }

    fn body(&mut self, body: &SetExpr) -> ControlFlow<()> {
        match body {
            SetExpr::Insert(s) | SetExpr::Update(s) | SetExpr::Delete(s) | SetExpr::Merge(s) => self.stop(name_of(s)),
            SetExpr::Select(select) if select.into.is_some() => self.stop("SELECT INTO"),
            SetExpr::SetOperation { left, right, .. } => {
                self.body(left)?;
                self.body(right)
            }
            _ => ControlFlow::Continue(()),
        }
    }
}

impl Visitor for ReadsOnly {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        if !query.locks.is_empty() {
            return self.stop("SELECT FOR UPDATE");
        }
        self.body(&query.body)
    }

    fn pre_visit_statement(&mut self, statement: &Statement) -> ControlFlow<()> {
        match statement {
            Statement::Query(_) => ControlFlow::Continue(()),
            other => self.stop(name_of(other)),
        }
    }

    fn pre_visit_table_factor(&mut self, table: &TableFactor) -> ControlFlow<()> {
        match table {
            TableFactor::MatchRecognize { .. } => self.stop("MATCH_RECOGNIZE"),
            _ => ControlFlow::Continue(()),
        }
    }
}

#[cfg(test)]
mod tests;
