//! Who calls, with which options; handshakes and actions.
//!
//! Options of a session live in a cookie that the client sends back: no state on the server, so that any process can serve the next call. A call
//! header `timestamp_unit` does the same for clients that keep no cookies.

use super::handle::{Handle, schema_bytes};
use super::status::no_transactions;
use super::{FlightSql, internal, refuse_transaction};
use arrow::datatypes::TimeUnit;
use arrow_flight::sql::{
    ActionCancelQueryRequest, ActionCancelQueryResult, ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest,
    ActionCreatePreparedStatementResult, Any, Command, ProstMessageExt, TicketStatementQuery,
};
use arrow_flight::{
    Action, ActionType, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, FlightInfo, HandshakeRequest, HandshakeResponse,
};
use bytes::Bytes;
use fletch_query::sql::catalog::{CATALOG, PUBLIC};
use fletch_query::sql::{Params, WireTypes};
use fletch_schemas::TenantId;
use futures::StreamExt;
use futures::stream::BoxStream;
use prost::Message;
use std::collections::HashMap;
use std::time::Duration;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Request, Response, Status, Streaming};

/// Metadata key of the tenant.
const TENANT: &str = "x-scope-orgid";
/// Session option, call header and part of the cookie: unit of timestamps.
const TIMESTAMP_UNIT: &str = "timestamp_unit";
/// Name of the cookie.
const COOKIE: &str = "fletch_session";

/// Whose call it is, and how the answer is to look.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Caller {
    pub(super) tenant: TenantId,
    pub(super) unit: TimeUnit,
    pub(super) timeout: Option<Duration>,
}

impl Caller {
    /// Reads tenant, options and deadline from the metadata of a call.
    ///
    /// # Errors
    /// The tenant is no tenant, or an option has a value it cannot have.
    pub(super) fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let metadata = request.metadata();
        let tenant = match metadata.get(TENANT) {
            None => TenantId::default(),
            Some(value) => {
                let name = value.to_str().map_err(|_| Status::invalid_argument("metadata x-scope-orgid: not plain ASCII"))?;
                TenantId::new(name).map_err(|e| Status::invalid_argument(format!("metadata x-scope-orgid: {e}")))?
            }
        };
        let option = header(metadata, TIMESTAMP_UNIT).or_else(|| cookie_option(metadata));
        let unit = match option {
            None => TimeUnit::Nanosecond,
            Some(text) => {
                unit_of(&text).ok_or_else(|| Status::invalid_argument(format!("timestamp_unit is s, ms, us or ns, not `{text}`")))?
            }
        };
        Ok(Self { tenant, unit, timeout: header(metadata, "grpc-timeout").as_deref().and_then(grpc_timeout) })
    }

    /// The same caller, asking for another unit.
    pub(super) fn with_unit(&self, unit: TimeUnit) -> Self {
        Self { unit, ..self.clone() }
    }

    /// Types of the answer.
    pub(super) fn wire(&self) -> WireTypes {
        WireTypes { timestamp: Some(self.unit) }
    }
}

fn header(metadata: &MetadataMap, name: &str) -> Option<String> {
    metadata.get(name)?.to_str().ok().map(str::to_owned)
}

/// The unit in our cookie: `fletch_session=us`.
fn cookie_option(metadata: &MetadataMap) -> Option<String> {
    let all = metadata.get_all("cookie");
    let mut pairs = all.iter().filter_map(|c| c.to_str().ok()).flat_map(|c| c.split(';'));
    pairs
        .find_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('=').map(|v| v.trim_matches('"').to_owned()))
        .filter(|v| !v.is_empty())
}

fn unit_of(text: &str) -> Option<TimeUnit> {
    match text {
        "s" => Some(TimeUnit::Second),
        "ms" => Some(TimeUnit::Millisecond),
        "us" => Some(TimeUnit::Microsecond),
        "ns" => Some(TimeUnit::Nanosecond),
        _ => None,
    }
}

fn unit_text(unit: TimeUnit) -> &'static str {
    match unit {
        TimeUnit::Second => "s",
        TimeUnit::Millisecond => "ms",
        TimeUnit::Microsecond => "us",
        TimeUnit::Nanosecond => "ns",
    }
}

/// The deadline of a call as gRPC writes it: digits and one letter.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count.saturating_mul(3_600))),
        "M" => Some(Duration::from_secs(count.saturating_mul(60))),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

/// Answers a handshake: clients that send a name and a password expect a bearer token back, whatever it says.
pub(super) fn handshake(
    _request: &Request<Streaming<HandshakeRequest>>,
) -> Result<Response<BoxStream<'static, Result<HandshakeResponse, Status>>>, Status> {
    let answer = HandshakeResponse { protocol_version: 0, payload: Bytes::new() };
    let mut response = Response::new(futures::stream::iter([Ok(answer)]).boxed());
    response.metadata_mut().insert("authorization", MetadataValue::from_static("Bearer anonymous"));
    Ok(response)
}

/// `SetSessionOptions`, `GetSessionOptions`, `CloseSession` of Flight's protocol, which arrow-flight has no messages for.
mod messages {
    use std::collections::HashMap;

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct StringList {
        #[prost(string, repeated, tag = "1")]
        pub(crate) values: Vec<String>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct OptionValue {
        #[prost(oneof = "Value", tags = "1, 2, 3, 4, 5")]
        pub(crate) value: Option<Value>,
    }

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(crate) enum Value {
        #[prost(string, tag = "1")]
        Text(String),
        #[prost(bool, tag = "2")]
        Bool(bool),
        #[prost(sfixed64, tag = "3")]
        Int(i64),
        #[prost(double, tag = "4")]
        Float(f64),
        #[prost(message, tag = "5")]
        List(StringList),
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct SetRequest {
        #[prost(map = "string, message", tag = "1")]
        pub(crate) options: HashMap<String, OptionValue>,
    }

    /// 1: no such option, 2: not such a value.
    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct SetError {
        #[prost(int32, tag = "1")]
        pub(crate) value: i32,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct SetResult {
        #[prost(map = "string, message", tag = "1")]
        pub(crate) errors: HashMap<String, SetError>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct GetResult {
        #[prost(map = "string, message", tag = "1")]
        pub(crate) options: HashMap<String, OptionValue>,
    }

    /// 1: closed.
    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct CloseResult {
        #[prost(int32, tag = "1")]
        pub(crate) status: i32,
    }
}

const INVALID_NAME: i32 = 1;
const INVALID_VALUE: i32 = 2;
const CLOSED: i32 = 1;

/// What is wrong with an option, if anything.
fn option_error(name: &str, value: &messages::OptionValue) -> Option<i32> {
    let text = match &value.value {
        Some(messages::Value::Text(text)) => Some(text.as_str()),
        // No value takes an option back to its default.
        None => return (!["catalog", "schema", TIMESTAMP_UNIT].contains(&name)).then_some(INVALID_NAME),
        _ => None,
    };
    let good = match name {
        "catalog" => text == Some(CATALOG),
        "schema" => text == Some(PUBLIC),
        TIMESTAMP_UNIT => text.and_then(unit_of).is_some(),
        _ => return Some(INVALID_NAME),
    };
    (!good).then_some(INVALID_VALUE)
}

fn set_options(request: &messages::SetRequest, caller: &Caller) -> Result<Answered, Status> {
    let errors: HashMap<String, messages::SetError> =
        request.options.iter().filter_map(|(n, v)| Some((n.clone(), messages::SetError { value: option_error(n, v)? }))).collect();
    let mut unit = caller.unit;
    if let Some(option) = request.options.get(TIMESTAMP_UNIT).filter(|_| !errors.contains_key(TIMESTAMP_UNIT)) {
        unit = match &option.value {
            Some(messages::Value::Text(text)) => unit_of(text).unwrap_or(TimeUnit::Nanosecond),
            _ => TimeUnit::Nanosecond,
        };
    }
    let cookie = format!("{COOKIE}={}; Path=/", unit_text(unit));
    Ok(Answered { body: messages::SetResult { errors }.encode_to_vec(), cookie: Some(cookie) })
}

fn get_options(caller: &Caller) -> Answered {
    let text = |t: &str| messages::OptionValue { value: Some(messages::Value::Text(t.to_owned())) };
    let all = [("catalog", CATALOG), ("schema", PUBLIC), (TIMESTAMP_UNIT, unit_text(caller.unit))];
    let options = all.into_iter().map(|(name, value)| (name.to_owned(), text(value))).collect();
    Answered { body: messages::GetResult { options }.encode_to_vec(), cookie: None }
}

/// The result of an action, and the cookie that it sets.
struct Answered {
    body: Vec<u8>,
    cookie: Option<String>,
}

impl Answered {
    fn plain(body: Vec<u8>) -> Self {
        Self { body, cookie: None }
    }

    fn response(self, empty: bool) -> Result<Response<BoxStream<'static, Result<arrow_flight::Result, Status>>>, Status> {
        let results = if empty { Vec::new() } else { vec![Ok(arrow_flight::Result::new(self.body))] };
        let mut response = Response::new(futures::stream::iter(results).boxed());
        if let Some(cookie) = self.cookie {
            let value = MetadataValue::try_from(cookie).map_err(|e| Status::internal(format!("writing a cookie: {e}")))?;
            response.metadata_mut().insert("set-cookie", value);
        }
        Ok(response)
    }
}

/// The actions, for `ListActions`.
pub(super) fn action_types() -> Vec<ActionType> {
    let all = [
        ("CreatePreparedStatement", "Plans a statement and returns its handle"),
        ("ClosePreparedStatement", "Forgets a handle (nothing is kept, so this always succeeds)"),
        ("CancelFlightInfo", "Stops the fetching of a statement"),
        ("CancelQuery", "Stops the fetching of a statement (older form)"),
        ("SetSessionOptions", "Sets catalog, schema, timestamp_unit (s, ms, us, ns) in a cookie"),
        ("GetSessionOptions", "Returns the options of the session"),
        ("CloseSession", "Removes the cookie"),
    ];
    all.into_iter().map(|(name, what)| ActionType { r#type: name.to_owned(), description: what.to_owned() }).collect()
}

impl FlightSql {
    /// Runs one action.
    pub(super) async fn action(
        &self,
        request: Request<Action>,
    ) -> Result<Response<BoxStream<'static, Result<arrow_flight::Result, Status>>>, Status> {
        let caller = Caller::of(&request)?;
        let Action { r#type: name, body } = request.into_inner();
        match name.as_str() {
            "CreatePreparedStatement" => Answered::plain(self.prepare(unpack(&body)?, &caller).await?).response(false),
            "ClosePreparedStatement" => {
                let _: ActionClosePreparedStatementRequest = unpack(&body)?;
                Answered::plain(Vec::new()).response(true)
            }
            "CancelFlightInfo" => {
                let request = CancelFlightInfoRequest::decode(body).map_err(damaged)?;
                let status = self.cancel(&request.info.unwrap_or_default(), &caller)?;
                Answered::plain(CancelFlightInfoResult::new(status).encode_to_vec()).response(false)
            }
            "CancelQuery" => {
                let request: ActionCancelQueryRequest = unpack(&body)?;
                let info = FlightInfo::decode(request.info).map_err(damaged)?;
                let result = ActionCancelQueryResult { result: self.cancel(&info, &caller)? as i32 };
                Answered::plain(result.as_any().encode_to_vec()).response(false)
            }
            "SetSessionOptions" => set_options(&messages::SetRequest::decode(body).map_err(damaged)?, &caller)?.response(false),
            "GetSessionOptions" => get_options(&caller).response(false),
            "CloseSession" => {
                let body = messages::CloseResult { status: CLOSED }.encode_to_vec();
                Answered { body, cookie: Some(format!("{COOKIE}=; Path=/; Max-Age=0")) }.response(false)
            }
            "BeginTransaction" | "EndTransaction" | "BeginSavepoint" | "EndSavepoint" => Err(no_transactions()),
            "CreatePreparedSubstraitPlan" => Err(Status::unimplemented("Substrait plans are not supported; send SQL")),
            other => Err(Status::unimplemented(format!("there is no action `{other}`"))),
        }
    }

    async fn prepare(&self, request: ActionCreatePreparedStatementRequest, caller: &Caller) -> Result<Vec<u8>, Status> {
        refuse_transaction(request.transaction_id.as_ref())?;
        let (handle, parameters) = self.describe(&request.query, Params::None, caller).await?;
        let result = ActionCreatePreparedStatementResult {
            dataset_schema: schema_bytes(&*handle.schema()?)?,
            parameter_schema: if parameters.fields().is_empty() { Bytes::new() } else { schema_bytes(&parameters)? },
            prepared_statement_handle: handle.encode_to_vec().into(),
        };
        Ok(result.as_any().encode_to_vec())
    }

    /// Stops whatever fetches a ticket of this flight.
    fn cancel(&self, info: &FlightInfo, caller: &Caller) -> Result<CancelStatus, Status> {
        let mut found = false;
        for ticket in info.endpoint.iter().filter_map(|e| e.ticket.as_ref()) {
            if let Command::TicketStatementQuery(TicketStatementQuery { statement_handle }) = super::command_of(&ticket.ticket)? {
                found |= self.running.cancel(caller, &Handle::decode_from(&statement_handle)?.nonce);
            }
        }
        // What nobody fetches does not run: that is as good as cancelled.
        Ok(if found { CancelStatus::Cancelling } else { CancelStatus::Cancelled })
    }
}

fn unpack<M: ProstMessageExt>(body: &[u8]) -> Result<M, Status> {
    let any = Any::decode(body).map_err(damaged)?;
    any.unpack().map_err(internal)?.ok_or_else(|| Status::invalid_argument(format!("expected a {}", M::type_url())))
}

fn damaged(error: prost::DecodeError) -> Status {
    Status::invalid_argument(format!("the request cannot be decoded: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&'static str, &str)]) -> Request<()> {
        let mut request = Request::new(());
        for (name, value) in headers {
            request.metadata_mut().insert(*name, value.parse().expect("ASCII"));
        }
        request
    }

    #[test]
    fn metadata_says_who_calls_and_how() {
        let caller = Caller::of(&request(&[("x-scope-orgid", "t1"), ("cookie", "a=b; fletch_session=us"), ("grpc-timeout", "1500m")]))
            .expect("valid");
        assert_eq!((caller.tenant.as_str(), caller.unit, caller.timeout), ("t1", TimeUnit::Microsecond, Some(Duration::from_millis(1500))));
        let plain = Caller::of(&request(&[])).expect("valid");
        assert_eq!((plain.tenant.as_str(), plain.unit, plain.timeout), ("default", TimeUnit::Nanosecond, None));
        assert_eq!(Caller::of(&request(&[("timestamp_unit", "ms")])).map(|c| c.unit).ok(), Some(TimeUnit::Millisecond));
        for bad in [("x-scope-orgid", "a/b"), ("timestamp_unit", "hours"), ("cookie", "fletch_session=x")] {
            assert_eq!(Caller::of(&request(&[bad])).map_err(|s| s.code()), Err(tonic::Code::InvalidArgument), "{bad:?}");
        }
        for odd in ["", "S", "xS", "1y", "é"] {
            assert_eq!(grpc_timeout(odd), None, "{odd}");
        }
    }

    #[test]
    fn options_are_checked_one_by_one() {
        let text = |t: &str| messages::OptionValue { value: Some(messages::Value::Text(t.into())) };
        let options = [("timestamp_unit", "us"), ("catalog", "other"), ("nonsense", "x")];
        let request = messages::SetRequest { options: options.into_iter().map(|(n, v)| (n.to_owned(), text(v))).collect() };
        let caller = Caller::of(&self::request(&[])).expect("valid");
        let answered = set_options(&request, &caller).expect("an answer");
        assert_eq!(answered.cookie.as_deref(), Some("fletch_session=us; Path=/"));
        let errors = messages::SetResult::decode(answered.body.as_slice()).expect("our own bytes").errors;
        let mut errors: Vec<_> = errors.into_iter().map(|(n, e)| (n, e.value)).collect();
        errors.sort();
        assert_eq!(errors, [("catalog".to_owned(), INVALID_VALUE), ("nonsense".to_owned(), INVALID_NAME)]);
    }
}
