//! The accept loop of the HTTP port.
//!
//! Our own, because the stock one runs without a timer: a client that never finishes its request head would hold a connection for ever.
//!
//! # Invariants
//! - A connection that does not send its head within [`HEADER_TIMEOUT`] is closed.
//! - At most [`CONNECTIONS_MAX`] connections at a time; the next one waits in the kernel's queue.
//! - After `stop` no connection is accepted; those with a request in flight get [`DRAIN_TIMEOUT`] to finish it.

use axum::Router;
use axum::extract::Request;
use fletch_ingest::decode::RemoteWriteCache;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// Longest wait for the head of a request.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for requests in flight at the stop.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Most connections at a time.
pub const CONNECTIONS_MAX: usize = 4_096;

/// What belongs to one connection: the decoder's memory of the last series it saw.
#[derive(Debug, Clone, Default)]
pub struct Connection {
    /// Successor guesses of remote write.
    pub remote_write: Arc<parking_lot::Mutex<RemoteWriteCache>>,
}

/// Serves `router` until `stop`, then drains.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(Some(Duration::from_secs(20)));
    let graceful = GracefulShutdown::new();
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = tokio::select! {
            permit = permits.clone().acquire_owned() => permit.expect("the semaphore is never closed"),
            () = stop.cancelled() => break,
        };
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _peer)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    continue;
                }
            },
            () = stop.cancelled() => break,
        };
        let _ = stream.set_nodelay(true);
        let connection = Connection::default();
        let router = router.clone();
        let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            let mut request: Request = request.map(axum::body::Body::new);
            request.extensions_mut().insert(connection.clone());
            router.clone().oneshot(request)
        });
        let served = graceful.watch(builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned());
        tokio::spawn(async move {
            if let Err(error) = served.await {
                tracing::debug!(%error, "connection ended");
            }
            drop(permit);
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were still running {} s after the stop; they are cut off", DRAIN_TIMEOUT.as_secs());
    }
}
