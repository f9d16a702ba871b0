//! Test double: an HTTP server that answers as scripted and hands over what it was sent.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// How the sink treats one request.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// Status line and headers, e.g. `429 Too Many Requests\r\nRetry-After: 7`.
    Answer(&'static str),
    /// No answer, ever.
    Hang,
}

/// Requests arrive in [`Sink::next`]; each takes one reply of the script, then everything is 200.
pub(crate) struct Sink {
    pub(crate) url: String,
    requests: mpsc::UnboundedReceiver<Request>,
    task: JoinHandle<()>,
}

/// What arrived.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) head: String,
    pub(crate) body: serde_json::Value,
}

impl Sink {
    pub(crate) async fn start(script: Vec<Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/hook?token=secret", listener.local_addr().expect("bound"));
        let (send, requests) = mpsc::unbounded_channel();
        let script = Arc::new(Mutex::new(VecDeque::from(script)));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&script), send.clone()));
            }
        });
        Self { url, requests, task }
    }

    pub(crate) async fn next(&mut self) -> Request {
        self.requests.recv().await.expect("the sink lives")
    }

    pub(crate) fn is_idle(&mut self) -> bool {
        self.requests.try_recv().is_err()
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, script: Arc<Mutex<VecDeque<Reply>>>, send: mpsc::UnboundedSender<Request>) {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..head_end]).into_owned();
    let length = head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length:").map(|v| v.trim().to_owned()));
    let length: usize = length.and_then(|v| v.parse().ok()).expect("the client says how long its body is");
    while bytes.len() < head_end + 4 + length {
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let body = serde_json::from_slice(&bytes[head_end + 4..]).expect("JSON");
    let reply = script.lock().pop_front().unwrap_or(Reply::Answer("200 OK"));
    let _ = send.send(Request { head, body });
    match reply {
        Reply::Answer(answer) => {
            let text = format!("HTTP/1.1 {answer}\r\nContent-Length: 5\r\nConnection: close\r\n\r\nsorry");
            let _ = stream.write_all(text.as_bytes()).await;
        }
        Reply::Hang => std::future::pending().await,
    }
}

/// Waits until `condition` holds, giving way to other tasks in between. The deadline only ends a test that would hang.
pub(crate) async fn eventually<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let started = std::time::Instant::now();
    while started.elapsed().as_secs() < 20 {
        if let Some(value) = condition().await {
            return value;
        }
        tokio::task::yield_now().await;
    }
    panic!("never happened: {what}");
}
