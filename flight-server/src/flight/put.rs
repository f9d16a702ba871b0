//! `DoPut`: parameters of prepared statements. Everything that would write is refused.

use super::handle::{Handle, params_of};
use super::session::Caller;
use super::status::read_only;
use super::{FlightSql, command_of};
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::sql::{Command, DoPutPreparedStatementResult};
use arrow_flight::{FlightData, PutResult};
use fletch_query::sql::Params;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use prost::Message;
use tonic::{Request, Status, Streaming};

/// Batches that one set of parameters may come in: one has the row, others are empty.
const BATCHES_MAX: usize = 16;

impl FlightSql {
    /// Binds parameters to a prepared statement; the answer is its new handle.
    pub(super) async fn put(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Result<BoxStream<'static, Result<PutResult, Status>>, Status> {
        let caller = Caller::of(&request)?;
        let mut messages = request.into_inner();
        let Some(first) = messages.message().await? else { return Err(Status::invalid_argument("an empty DoPut")) };
        let command = first.flight_descriptor.as_ref().map(|d| command_of(&d.cmd));
        let command = command.unwrap_or_else(|| Err(Status::invalid_argument("a DoPut begins with a command")))?;
        let handle = match command {
            Command::CommandPreparedStatementQuery(c) => Handle::decode_from(&c.prepared_statement_handle)?,
            Command::CommandStatementUpdate(_) | Command::CommandPreparedStatementUpdate(_) => return Err(read_only("an update")),
            Command::CommandStatementIngest(_) => return Err(read_only("bulk ingestion")),
            Command::CommandStatementSubstraitPlan(_) => return Err(Status::unimplemented("Substrait plans are not supported; send SQL")),
            other => return Err(Status::invalid_argument(format!("{} cannot be put", other.type_url()))),
        };
        let messages = futures::stream::iter([Ok(first)]).chain(messages);
        let params = parameters(messages.boxed()).await?;
        // With the values known, types that depend on them are known, too: the new handle announces them.
        let (bound, _) = self.describe(&handle.sql, params, &caller.with_unit(handle.unit()?)).await?;
        let result = DoPutPreparedStatementResult { prepared_statement_handle: Some(bound.encode_to_vec().into()) };
        let result = PutResult { app_metadata: result.encode_to_vec().into() };
        Ok(futures::stream::iter([Ok(result)]).boxed())
    }
}

/// The one row of parameters in a stream.
async fn parameters(messages: BoxStream<'static, Result<FlightData, Status>>) -> Result<Params, Status> {
    let messages = messages.map_err(|status| FlightError::Tonic(Box::new(status)));
    let mut batches = FlightRecordBatchStream::new_from_flight_data(messages);
    let mut params = Params::None;
    for batches_read in 0.. {
        let Some(batch) = batches.next().await else { break };
        if batches_read >= BATCHES_MAX {
            return Err(Status::invalid_argument(format!("parameters come in at most {BATCHES_MAX} batches")));
        }
        let batch = batch.map_err(|e| Status::invalid_argument(format!("parameters cannot be read: {e}")))?;
        let next = params_of(&batch)?;
        if params != Params::None && next != Params::None {
            return Err(Status::invalid_argument("a query takes one row of parameters, not several"));
        }
        if next != Params::None {
            params = next;
        }
    }
    Ok(params)
}
