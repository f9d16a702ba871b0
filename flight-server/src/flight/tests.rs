//! The port with arrow-flight's own client over a socket, on a real storage in memory.

use super::*;
use arrow::array::{AsArray, Int64Array, StringArray};
use arrow::datatypes::{DataType, Field, Float64Type, TimeUnit, TimestampMicrosecondType, TimestampNanosecondType};
use arrow_flight::CancelFlightInfoRequest;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::sql::{CommandGetDbSchemas, CommandGetTables, CommandStatementQuery, SqlInfo};
use fletch_common::{ManualClock, SharedClock};
use fletch_ingest::{BatchSink, Delivery, SampleBatch, SeriesRegistry};
use fletch_query::engine::{Engine, EngineSettings};
use fletch_query::sql::SqlSettings;
use fletch_schemas::{Labels, TenantId, stale_marker};
use fletch_storage::Settings;
use object_store::memory::InMemory;
use std::sync::atomic::{AtomicI64, Ordering};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

/// 2026-01-01T12:00:00Z.
const NOON: i64 = 1_767_268_800_000;

struct Port {
    storage: Arc<Storage>,
    registry: Arc<SeriesRegistry>,
    offset: AtomicI64,
    channel: Channel,
    stop: CancellationToken,
    served: JoinHandle<anyhow::Result<()>>,
}

impl Port {
    async fn open() -> Self {
        let (store, registry) = (Arc::new(InMemory::new()), Arc::new(SeriesRegistry::new()));
        let clock: SharedClock = ManualClock::at(NOON);
        let storage = Storage::open(Settings::default(), store.clone(), registry.clone(), clock.clone()).await.expect("an empty store");
        storage.set_bus_id("log").expect("the first bus");
        storage.assigned(0).expect("nobody else");
        let promql = Arc::new(Engine::new(EngineSettings::default()));
        let settings = SqlSettings { threads: 2, ..SqlSettings::default() };
        let sql = SqlEngine::new(settings, store, clock, promql, Arc::new(Semaphore::new(8))).expect("threads");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let stop = CancellationToken::new();
        let served = tokio::spawn(FlightSql::new(sql, storage.clone()).serve(listener, stop.clone().cancelled_owned()));
        let channel = Endpoint::from_shared(format!("http://{address}")).expect("an address").connect().await.expect("it listens");
        let port = Self { storage, registry, offset: AtomicI64::new(0), channel, stop, served };
        port.insert("default", "a", &[(NOON, 1.0), (NOON + 15_000, stale_marker())]);
        port.insert("default", "b", &[(NOON, 2.0)]);
        port.insert("other", "secret", &[(NOON, 9.0)]);
        port
    }

    fn insert(&self, tenant: &str, host: &str, samples: &[(i64, f64)]) {
        let labels = Labels::from_pairs([("__name__", "cpu"), ("host", host)]).expect("valid");
        self.insert_labels(tenant, &labels, samples);
    }

    fn insert_labels(&self, tenant: &str, labels: &Labels, samples: &[(i64, f64)]) {
        let series = self.registry.resolve(&TenantId::new(tenant).expect("valid"), labels);
        let mut batch = SampleBatch::default();
        samples.iter().for_each(|&(time, value)| batch.push(series, time, value));
        let from = self.offset.fetch_add(1, Ordering::Relaxed);
        let (batch, metadata, sources) = (Arc::new(batch), Vec::new(), Vec::new());
        self.storage.deliver(&Delivery { partition: 0, from, to: from + 1, append_time_ms: NOON, batch, metadata, sources });
    }

    fn client(&self) -> Client {
        FlightSqlServiceClient::new(self.channel.clone())
    }

    async fn close(self) {
        drop(self.channel);
        self.stop.cancel();
        self.served.await.expect("no panic").expect("a clean end");
    }
}

type Client = FlightSqlServiceClient<Channel>;

async fn fetch(client: &mut Client, info: FlightInfo) -> Result<Vec<RecordBatch>, Status> {
    fetch_as(client, info, &[]).await
}

/// The client sends its headers with its own calls only; these are sent with calls of the protocol.
fn request<T>(message: T, headers: &[(&'static str, &str)]) -> Request<T> {
    let mut request = Request::new(message);
    for (name, value) in headers {
        request.metadata_mut().insert(*name, value.parse().expect("ASCII"));
    }
    request
}

async fn fetch_as(client: &mut Client, info: FlightInfo, headers: &[(&'static str, &str)]) -> Result<Vec<RecordBatch>, Status> {
    let schema = info.clone().try_decode_schema().expect("a schema");
    let ticket = info.endpoint[0].ticket.clone().expect("a ticket");
    let stream = client.inner_mut().do_get(request(ticket, headers)).await?.into_inner();
    let batches =
        FlightRecordBatchStream::new_from_flight_data(stream.map_err(|s| FlightError::Tonic(Box::new(s)))).try_collect::<Vec<_>>().await;
    let batches = batches.map_err(|e| match e {
        FlightError::Tonic(status) => *status,
        other => Status::unknown(other.to_string()),
    })?;
    assert!(batches.iter().all(|b| *b.schema() == schema), "F2: the announced schema");
    Ok(batches)
}

async fn run(client: &mut Client, sql: &str) -> Result<Vec<RecordBatch>, Code> {
    run_as(client, sql, &[]).await
}

async fn run_as(client: &mut Client, sql: &str, headers: &[(&'static str, &str)]) -> Result<Vec<RecordBatch>, Code> {
    let descriptor = FlightDescriptor::new_cmd(CommandStatementQuery { query: sql.into(), transaction_id: None }.as_any().encode_to_vec());
    let info = client.inner_mut().get_flight_info(request(descriptor, headers)).await.map_err(|s| s.code())?.into_inner();
    fetch_as(client, info, headers).await.map_err(|s| s.code())
}

const BY_HOST: &str = r#"SELECT time, value, host FROM m."cpu" ORDER BY host, time"#;

#[tokio::test]
async fn statements_come_with_plain_types_and_nanoseconds() {
    let port = Port::open().await;
    let rows = run(&mut port.client(), BY_HOST).await.expect("rows");
    assert_eq!(rows.iter().map(RecordBatch::num_rows).sum::<usize>(), 3);
    assert_eq!(rows[0].column(0).as_primitive::<TimestampNanosecondType>().value(0), NOON * 1_000_000);
    assert_eq!(rows[0].schema().field(0).data_type(), &DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into())));
    assert_eq!((rows[0].column(1).as_primitive::<Float64Type>().value(0), rows[0].column(1).null_count()), (1.0, 1));
    assert_eq!(rows[0].column(2).as_string::<i32>().value(2), "b");
    for headers in [&[("timestamp_unit", "us")][..], &[("cookie", "fletch_session=us")]] {
        let rows = run_as(&mut port.client(), BY_HOST, headers).await.expect("rows");
        assert_eq!(rows[0].column(0).as_primitive::<TimestampMicrosecondType>().value(0), NOON * 1_000);
    }
    port.close().await;
}

#[tokio::test]
async fn the_tenant_comes_with_every_call() {
    let port = Port::open().await;
    let mut client = port.client();
    let other = [("x-scope-orgid", "other")];
    let rows = run_as(&mut client, BY_HOST, &other).await.expect("rows");
    assert_eq!(rows[0].column(2).as_string::<i32>().value(0), "secret");
    // A ticket of one tenant, fetched by another: it opens the other's data only.
    client.set_header("x-scope-orgid", "other");
    let info = client.execute(BY_HOST.to_owned(), None).await.expect("a plan");
    let stolen = fetch(&mut client, info).await.expect("rows");
    assert!(!stolen[0].column(2).as_string::<i32>().iter().any(|h| h == Some("secret")));
    assert_eq!(run_as(&mut client, "SELECT 1", &[("x-scope-orgid", "a/b")]).await, Err(Code::InvalidArgument));
    port.close().await;
}

#[tokio::test]
async fn prepared_statements_carry_their_parameters() {
    let port = Port::open().await;
    let mut client = port.client();
    let mut prepared =
        client.prepare(r#"SELECT value FROM m."cpu" WHERE host = $1 AND value > $2"#.to_owned(), None).await.expect("a plan");
    assert_eq!(prepared.parameter_schema().expect("a schema").fields().len(), 2);
    assert_eq!(prepared.dataset_schema().expect("a schema").field(0).name(), "value");
    let schema = Arc::new(Schema::new(vec![Field::new("1", DataType::Utf8, true), Field::new("2", DataType::Int64, true)]));
    let values =
        RecordBatch::try_new(schema, vec![Arc::new(StringArray::from(vec!["b"])), Arc::new(Int64Array::from(vec![0]))]).expect("one row");
    prepared.set_parameters(values).expect("bound");
    let info = prepared.execute().await.expect("a plan");
    let rows = fetch(&mut client, info).await.expect("rows");
    assert_eq!(rows[0].column(0).as_primitive::<Float64Type>().values(), &[2.0]);
    prepared.close().await.expect("closed");
    let mut any = client.prepare("SELECT $1 AS x".to_owned(), None).await.expect("the type is not known yet");
    any.set_parameters(RecordBatch::try_from_iter([("1", Arc::new(Int64Array::from(vec![7])) as _)]).expect("one row")).expect("bound");
    let info = any.execute().await.expect("a plan");
    assert_eq!(fetch(&mut client, info).await.expect("rows")[0].num_rows(), 1);
    port.close().await;
}

#[tokio::test]
async fn new_labels_between_planning_and_fetching_change_nothing() {
    let port = Port::open().await;
    let mut client = port.client();
    let info = client.execute(r#"SELECT * FROM m."cpu""#.to_owned(), None).await.expect("a plan");
    let labels = Labels::from_pairs([("__name__", "cpu"), ("host", "c"), ("aaa", "new")]).expect("valid");
    port.insert_labels("default", &labels, &[(NOON, 3.0)]);
    let rows = fetch(&mut client, info).await.expect("rows");
    assert_eq!((rows[0].num_columns(), rows.iter().map(RecordBatch::num_rows).sum::<usize>()), (3, 4));
    let again = run(&mut client, r#"SELECT * FROM m."cpu""#).await.expect("rows");
    assert_eq!(again[0].num_columns(), 4);
    port.close().await;
}

#[tokio::test]
async fn metadata_calls_work_with_and_without_filters() {
    let port = Port::open().await;
    let mut client = port.client();
    let rows = async |client: &mut Client, info: FlightInfo| {
        fetch(client, info).await.expect("rows").iter().map(RecordBatch::num_rows).sum::<usize>()
    };
    let tables = |schema: Option<&str>, table: Option<&str>, kinds: &[&str], include_schema| CommandGetTables {
        catalog: None,
        db_schema_filter_pattern: schema.map(str::to_owned),
        table_name_filter_pattern: table.map(str::to_owned),
        table_types: kinds.iter().map(|k| (*k).to_owned()).collect(),
        include_schema,
    };
    for (command, expected) in [
        (tables(None, None, &[], true), 4),
        (tables(Some("m"), None, &[], true), 1),
        (tables(Some("p%"), Some("s_mples"), &[], false), 1),
        (tables(None, None, &["VIEW"], false), 1),
        (tables(None, Some(BY_HOST), &[], true), 0),
        (CommandGetTables { catalog: Some("nope".into()), ..tables(None, None, &[], false) }, 0),
    ] {
        let info = client.get_tables(command.clone()).await.expect("an answer");
        assert_eq!(rows(&mut client, info).await, expected, "{command:?}");
    }
    let info = client.get_tables(tables(Some("m"), Some("cpu"), &[], true)).await.expect("an answer");
    let found = fetch(&mut client, info).await.expect("rows");
    let bytes = Bytes::copy_from_slice(found[0].column(4).as_binary::<i32>().value(0));
    let schema = Schema::try_from(arrow_flight::IpcMessage(bytes)).expect("a schema");
    let fields: Vec<String> = schema.fields().iter().map(|f| format!("{} {}", f.name(), f.data_type())).collect();
    assert_eq!(fields, ["time Timestamp(ns, \"UTC\")", "value Float64", "host Utf8"]);
    let info = client.get_catalogs().await.expect("an answer");
    assert_eq!(rows(&mut client, info).await, 1);
    let info = client.get_db_schemas(CommandGetDbSchemas { catalog: None, db_schema_filter_pattern: None }).await.expect("an answer");
    assert_eq!(rows(&mut client, info).await, 3);
    let info = client.get_sql_info(vec![SqlInfo::FlightSqlServerName]).await.expect("an answer");
    assert_eq!(rows(&mut client, info).await, 1);
    let info = client.get_primary_keys(Default::default()).await.expect("not unimplemented");
    assert_eq!(rows(&mut client, info).await, 0);
    port.close().await;
}

#[tokio::test]
async fn errors_have_codes_and_one_line() {
    let port = Port::open().await;
    let mut client = port.client();
    for (sql, code) in [
        ("SELEC 1", Code::InvalidArgument),
        ("SELECT nope FROM samples", Code::InvalidArgument),
        ("SELECT * FROM nope", Code::NotFound),
        ("COPY samples TO '/tmp/x'", Code::InvalidArgument),
        ("SELECT 1/0", Code::InvalidArgument),
    ] {
        assert_eq!(run(&mut client, sql).await, Err(code), "{sql}");
    }
    let long = format!("SELECT '{}'", "x".repeat(100_000));
    assert_eq!(run(&mut client, &long).await, Err(Code::ResourceExhausted));
    let slow = "SELECT count(*) FROM generate_series(1, 100000000000) WHERE value % 7 = 3";
    let late = run_as(&mut client, slow, &[("grpc-timeout", "300m")]).await.expect_err("it takes hours");
    // Whoever looks at the clock first: the server of the protocol cancels, ours says that it is late.
    assert!(matches!(late, Code::DeadlineExceeded | Code::Cancelled), "{late:?}");
    let status = client.inner_mut().get_flight_info(FlightDescriptor::new_cmd(&b"junk"[..])).await.expect_err("no command");
    assert_eq!(status.code(), Code::InvalidArgument);
    let status = client.inner_mut().do_get(Ticket::new(&b"\xff\xff"[..])).await.expect_err("no ticket");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(client.execute_update("INSERT INTO samples VALUES (1)".into(), None).await.is_err());
    assert!(client.begin_transaction().await.is_err());
    port.close().await;
}

#[tokio::test]
async fn a_fetch_can_be_cancelled() {
    let port = Port::open().await;
    let mut client = port.client();
    let info = client.execute("SELECT value FROM generate_series(1, 9000000)".to_owned(), None).await.expect("a plan");
    let ticket = info.endpoint[0].ticket.clone().expect("a ticket");
    let mut stream = client.inner_mut().do_get(ticket).await.expect("it begins").into_inner();
    assert!(stream.message().await.expect("the schema").is_some());
    let action = Action::new("CancelFlightInfo", CancelFlightInfoRequest::new(info).encode_to_vec());
    let mut answer = client.inner_mut().do_action(action).await.expect("an answer").into_inner();
    assert!(answer.message().await.expect("a result").is_some());
    let end = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => break Code::Ok,
            Err(status) => break status.code(),
        }
    };
    assert_eq!(end, Code::Cancelled);
    port.close().await;
}

#[tokio::test]
async fn schemas_polls_handshakes_and_sessions_are_answered() {
    let port = Port::open().await;
    let mut client = FlightServiceClient::new(port.channel.clone());
    let descriptor =
        FlightDescriptor::new_cmd(CommandStatementQuery { query: "SELECT 1 AS one".into(), transaction_id: None }.as_any().encode_to_vec());
    let schema = Schema::try_from(&client.get_schema(descriptor.clone()).await.expect("a schema").into_inner()).expect("decodes");
    assert_eq!(schema.field(0).name(), "one");
    let poll = client.poll_flight_info(descriptor).await.expect("a poll").into_inner();
    assert_eq!((poll.progress, poll.info.is_some()), (Some(1.0), true));
    let mut sql = port.client();
    sql.handshake("user", "password").await.expect("tolerated");
    assert!(sql.token().is_some());
    let closed = client.do_action(Action::new("CloseSession", Bytes::new())).await.expect("closed");
    assert!(closed.metadata().get("set-cookie").is_some_and(|c| c.to_str().is_ok_and(|c| c.contains("Max-Age=0"))));
    assert_eq!(client.do_action(Action::new("Nonsense", Bytes::new())).await.expect_err("no such action").code(), Code::Unimplemented);
    let actions = client.list_actions(Empty {}).await.expect("a list").into_inner().try_collect::<Vec<_>>().await.expect("types");
    assert!(actions.iter().any(|a| a.r#type == "SetSessionOptions"));
    port.close().await;
}
