//! The Flight SQL port: statements, prepared statements and metadata over gRPC, for ADBC, JDBC, Polars, pandas, Grafana.
//!
//! ```text
//!  GetFlightInfo / GetSchema (command) ─▶ schema + ticket        nothing runs, nothing is kept on the server
//!  DoGet (ticket)                      ─▶ rows                   the statement runs here, in the tenant's newest view
//!  DoPut (prepared statement)          ─▶ new handle             parameters travel inside of the handle
//! ```
//!
//! # Invariants
//! - **F1** Stateless: a handle or ticket carries the statement, its parameters and the schema it was announced with ([`handle`]). Any process can
//!   answer it. The tenant is not in it: it comes with every call, so a handle opens nobody else's data.
//! - **F2** Rows come with exactly the announced schema; a view that got new columns in between is projected to it.
//! - **F3** On the wire are Utf8 (no views, large variants or dictionaries) and nanosecond UTC timestamps, unless the session asks for another unit.
//! - **F4** Errors are turned into gRPC codes in [`status`] and nowhere else.
//!
//! # Not here
//! Updates, ingestion, transactions, Substrait: refused by name. Authentication: a handshake is answered, nothing is checked.

mod handle;
mod metadata;
mod put;
mod session;
mod status;
#[cfg(test)]
mod tests;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::sql::{Any, Command, ProstMessageExt, TicketStatementQuery};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest, HandshakeResponse,
    PollInfo, PutResult, SchemaAsIpc, SchemaResult, Ticket,
};
use bytes::Bytes;
use fletch_query::sql::{Params, SqlEngine, SqlQuery};
use fletch_storage::Storage;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};
use handle::Handle;
use prost::Message;
use session::Caller;
use status::status_of;
use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

/// Largest message that a client may send: a statement and its parameters are far smaller.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Streams that one connection may have open.
const STREAMS_PER_CONNECTION_MAX: u32 = 256;
/// Bytes of headers that one call may send.
const HEADER_BYTES_MAX: u32 = 64 << 10;

/// The service. Cheap to clone.
#[derive(Debug, Clone)]
pub struct FlightSql {
    sql: Arc<SqlEngine>,
    storage: Arc<Storage>,
    metadata: Arc<metadata::Static>,
    running: Running,
}

/// What answers a command: a schema now, rows when they are fetched.
enum Answer {
    /// A statement; runs when it is fetched.
    Statement(Handle),
    /// Metadata that is known already.
    Batch(RecordBatch),
}

impl FlightSql {
    /// A service over one engine and one storage.
    pub fn new(sql: Arc<SqlEngine>, storage: Arc<Storage>) -> Self {
        let metadata = Arc::new(metadata::Static::new(sql.limits()));
        Self { sql, storage, metadata, running: Running::default() }
    }

    /// The gRPC service with its limits, ready for a tonic router.
    pub fn into_server(self) -> FlightServiceServer<Self> {
        FlightServiceServer::new(self).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Serves `listener` until `stop` completes; open calls are finished first.
    ///
    /// # Errors
    /// The listener fails.
    pub async fn serve(self, listener: TcpListener, stop: impl Future<Output = ()> + Send) -> anyhow::Result<()> {
        Server::builder()
            .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
            .http2_max_header_list_size(HEADER_BYTES_MAX)
            .add_service(self.into_server())
            .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), stop)
            .await?;
        Ok(())
    }

    /// What answers a command of a descriptor or of a metadata ticket.
    async fn answer(&self, command: Command, caller: &Caller) -> Result<Answer, Status> {
        match command {
            Command::CommandStatementQuery(c) => {
                refuse_transaction(c.transaction_id.as_ref())?;
                Ok(Answer::Statement(self.describe(&c.query, Params::None, caller).await?.0))
            }
            Command::CommandPreparedStatementQuery(c) => Ok(Answer::Statement(Handle::decode_from(&c.prepared_statement_handle)?)),
            Command::TicketStatementQuery(t) => Ok(Answer::Statement(Handle::decode_from(&t.statement_handle)?)),
            Command::CommandGetTables(c) => self.tables(c, caller).await.map(Answer::Batch),
            Command::CommandStatementSubstraitPlan(_) => Err(Status::unimplemented("Substrait plans are not supported; send SQL")),
            other => self.metadata.answer(other).map(Answer::Batch),
        }
    }

    /// Plans a statement: its handle, and the schema of its parameters.
    async fn describe(&self, sql: &str, params: Params, caller: &Caller) -> Result<(Handle, Schema), Status> {
        let query = SqlQuery { params: params.clone(), ..self.query(sql, caller) };
        let description = self.sql.describe(query).await.map_err(status_of)?;
        let parameters = handle::parameter_schema(&description.parameters);
        Ok((Handle::new(sql, &params, &description.schema, caller.unit)?, parameters))
    }

    fn query(&self, sql: &str, caller: &Caller) -> SqlQuery {
        SqlQuery { timeout: caller.timeout, wire: caller.wire(), ..SqlQuery::new(self.storage.view(&caller.tenant), sql) }
    }

    async fn schema_of(&self, answer: &Answer) -> Result<SchemaRef, Status> {
        match answer {
            Answer::Statement(handle) => handle.schema(),
            Answer::Batch(batch) => Ok(batch.schema()),
        }
    }

    async fn info(&self, request: Request<FlightDescriptor>) -> Result<FlightInfo, Status> {
        let caller = Caller::of(&request)?;
        let descriptor = request.into_inner();
        let command = command_of(&descriptor.cmd)?;
        let answer = self.answer(command, &caller).await?;
        let schema = self.schema_of(&answer).await?;
        let (ticket, rows) = match answer {
            Answer::Statement(handle) => {
                let ticket = TicketStatementQuery { statement_handle: handle.with_new_nonce().encode_to_vec().into() };
                (ticket.as_any().encode_to_vec(), -1)
            }
            // Metadata is computed again when it is fetched: the command itself is the ticket.
            Answer::Batch(batch) => (descriptor.cmd.to_vec(), i64::try_from(batch.num_rows()).unwrap_or(-1)),
        };
        let endpoint = FlightEndpoint::new().with_ticket(Ticket::new(ticket));
        let info = FlightInfo::new().try_with_schema(&schema).map_err(internal)?.with_descriptor(descriptor).with_endpoint(endpoint);
        Ok(info.with_total_records(rows).with_ordered(false))
    }

    async fn rows(&self, handle: Handle, caller: &Caller) -> Result<BoxStream<'static, Result<FlightData, Status>>, Status> {
        let announced = handle.schema()?;
        let caller = caller.with_unit(handle.unit()?);
        let query = SqlQuery { params: handle.params()?, ..self.query(&handle.sql, &caller) };
        let (stop, registered) = self.running.register(&caller, &handle.nonce);
        let answer = tokio::select! {
            answer = self.sql.execute(query) => answer.map_err(status_of)?,
            () = stop.cancelled() => return Err(Status::cancelled("the query was cancelled")),
        };
        let projection = handle::Projection::new(&answer.schema, &announced)?;
        let rows = answer.batches.map(move |batch| projection.apply(&batch.map_err(status_of)?));
        let cancelled = futures::stream::once(async move {
            stop.cancelled().await;
            Err(Status::cancelled("the query was cancelled"))
        });
        // Ends with the rows, or with the cancellation if that comes first; the registration lives as long as the stream.
        let rows = rows.map(Some).chain(futures::stream::iter([None]));
        let both = futures::stream::select(rows, cancelled.map(Some));
        let until_end = both.take_while(|item| std::future::ready(item.is_some())).filter_map(std::future::ready);
        let until_error = end_after_error(until_end).inspect(move |_| {
            let _ = &registered;
        });
        Ok(encode(announced, until_error))
    }

    async fn get(&self, request: Request<Ticket>) -> Result<BoxStream<'static, Result<FlightData, Status>>, Status> {
        let caller = Caller::of(&request)?;
        match self.answer(command_of(&request.get_ref().ticket)?, &caller).await? {
            Answer::Statement(handle) => self.rows(handle, &caller).await,
            Answer::Batch(batch) => Ok(encode(batch.schema(), futures::stream::iter([Ok(batch)]))),
        }
    }
}

fn refuse_transaction(id: Option<&Bytes>) -> Result<(), Status> {
    if id.is_some_and(|id| !id.is_empty()) { Err(status::no_transactions()) } else { Ok(()) }
}

fn command_of(bytes: &[u8]) -> Result<Command, Status> {
    let any = Any::decode(bytes).map_err(|e| Status::invalid_argument(format!("not a Flight SQL command or ticket: {e}")))?;
    Command::try_from(any).map_err(|e| Status::invalid_argument(format!("a Flight SQL command is damaged: {e}")))
}

fn encode(
    schema: SchemaRef,
    rows: impl Stream<Item = Result<RecordBatch, Status>> + Send + 'static,
) -> BoxStream<'static, Result<FlightData, Status>> {
    let rows = rows.map_err(|status| FlightError::Tonic(Box::new(status)));
    FlightDataEncoderBuilder::new().with_schema(schema).build(rows).map_err(Status::from).boxed()
}

fn end_after_error<T: Send + 'static>(
    stream: impl Stream<Item = Result<T, Status>> + Send + 'static,
) -> impl Stream<Item = Result<T, Status>> + Send + 'static {
    stream.scan(false, |failed, item| {
        let end = *failed;
        *failed = item.is_err();
        std::future::ready((!end).then_some(item))
    })
}

fn internal(error: ArrowError) -> Status {
    Status::internal(format!("writing an answer: {error}"))
}

/// Statements under way, by tenant and nonce, so that `CancelFlightInfo` can reach them.
#[derive(Debug, Clone, Default)]
struct Running(Arc<parking_lot::Mutex<HashMap<(String, String), CancellationToken>>>);

/// Takes a statement off the list when its stream is dropped.
#[derive(Debug)]
struct Registered {
    running: Running,
    key: (String, String),
    _stop: DropGuard,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.running.0.lock().remove(&self.key);
    }
}

impl Running {
    fn register(&self, caller: &Caller, nonce: &str) -> (CancellationToken, Registered) {
        let (stop, key) = (CancellationToken::new(), (caller.tenant.to_string(), nonce.to_owned()));
        self.0.lock().insert(key.clone(), stop.clone());
        (stop.clone(), Registered { running: self.clone(), key, _stop: stop.drop_guard() })
    }

    /// Whether there was something to cancel.
    fn cancel(&self, caller: &Caller, nonce: &str) -> bool {
        let found = self.0.lock().get(&(caller.tenant.to_string(), nonce.to_owned())).cloned();
        found.is_some_and(|stop| {
            stop.cancel();
            true
        })
    }
}

#[tonic::async_trait]
impl FlightService for FlightSql {
    type HandshakeStream = BoxStream<'static, Result<HandshakeResponse, Status>>;
    type ListFlightsStream = BoxStream<'static, Result<FlightInfo, Status>>;
    type DoGetStream = BoxStream<'static, Result<FlightData, Status>>;
    type DoPutStream = BoxStream<'static, Result<PutResult, Status>>;
    type DoActionStream = BoxStream<'static, Result<arrow_flight::Result, Status>>;
    type ListActionsStream = BoxStream<'static, Result<ActionType, Status>>;
    type DoExchangeStream = BoxStream<'static, Result<FlightData, Status>>;

    async fn handshake(&self, request: Request<Streaming<HandshakeRequest>>) -> Result<Response<Self::HandshakeStream>, Status> {
        session::handshake(&request)
    }

    async fn list_flights(&self, _request: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        // Flight SQL has its own metadata calls; there are no other flights.
        Ok(Response::new(futures::stream::empty().boxed()))
    }

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        self.info(request).await.map(Response::new)
    }

    async fn poll_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        // Nothing runs before it is fetched, so the information is complete at once.
        let info = self.info(request).await?;
        Ok(Response::new(PollInfo::new().with_info(info).try_with_progress(1.0).map_err(internal)?))
    }

    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        let caller = Caller::of(&request)?;
        let answer = self.answer(command_of(&request.get_ref().cmd)?, &caller).await?;
        let schema = self.schema_of(&answer).await?;
        let result = SchemaResult::try_from(SchemaAsIpc::new(&schema, &Default::default())).map_err(internal)?;
        Ok(Response::new(result))
    }

    async fn do_get(&self, request: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        self.get(request).await.map(Response::new)
    }

    async fn do_put(&self, request: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        self.put(request).await.map(Response::new)
    }

    async fn do_exchange(&self, _request: Request<Streaming<FlightData>>) -> Result<Response<Self::DoExchangeStream>, Status> {
        Err(Status::unimplemented("DoExchange is not part of Flight SQL"))
    }

    async fn do_action(&self, request: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        self.action(request).await
    }

    async fn list_actions(&self, _request: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        Ok(Response::new(futures::stream::iter(session::action_types().into_iter().map(Ok)).boxed()))
    }
}
