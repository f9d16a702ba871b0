use super::super::testing::{Fault, FaultStore, JumpClock};
use super::*;
use object_store::memory::InMemory;
use object_store::{CopyOptions, ObjectStoreExt};

const TTL: Duration = Duration::from_secs(60);

fn create_options() -> PutOptions {
    PutOptions { mode: PutMode::Create, ..PutOptions::default() }
}

#[tokio::test]
async fn a_local_put_is_whole_and_creates_only_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let url = Url::from_directory_path(folder.path().join("new/store")).expect("absolute");
    let store = open_store(url.as_str(), []).expect("opens");
    let path = Path::parse("tables/samples/tenant=a%2Eb/x").expect("a path");
    store.put_opts(&path, "one".into(), create_options()).await.expect("creates");
    let again = store.put_opts(&path, "two".into(), create_options()).await;
    assert!(matches!(again, Err(object_store::Error::AlreadyExists { .. })), "{again:?}");
    assert_eq!(store.get(&path).await.expect("there").bytes().await.expect("reads"), "one");
    store.put(&path, "three".into()).await.expect("overwrites");
    assert_eq!(store.get(&path).await.expect("there").bytes().await.expect("reads"), "three");
    assert_eq!(std::fs::read(folder.path().join("new/store/tables/samples/tenant=a%2Eb/x")).expect("literal name"), b"three");
    let to = Path::from("y");
    store.copy_opts(&path, &to, CopyOptions::default()).await.expect("copies");
    store.rename(&to, &Path::from("z")).await.expect("renames");
    store.delete(&path).await.expect("deletes");
    let left: Vec<_> = store.list(None).try_collect().await.expect("lists");
    assert_eq!(left.iter().map(|m| m.location.as_ref()).collect::<Vec<_>>(), ["z"]);
    let missing = store.get(&path).await;
    assert!(matches!(missing, Err(object_store::Error::NotFound { .. })), "{missing:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_local_creators_one_wins() {
    let folder = tempfile::tempdir().expect("a folder");
    let stores = [0, 1].map(|_| Arc::new(FsyncLocal::create(folder.path()).expect("opens")));
    let tasks: Vec<_> = (0..16)
        .map(|i| {
            let store = stores[i % 2].clone();
            tokio::spawn(
                async move { store.put_opts(&Path::from("a/b/c"), i.to_string().into(), create_options()).await.is_ok().then_some(i) },
            )
        })
        .collect();
    let mut winners = Vec::new();
    for task in tasks {
        winners.extend(task.await.expect("no panic"));
    }
    assert_eq!(winners.len(), 1);
    let stored = stores[0].get(&Path::from("a/b/c")).await.expect("there").bytes().await.expect("reads");
    assert_eq!(stored, winners[0].to_string().as_bytes());
}

#[tokio::test]
async fn parts_become_one_local_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = FsyncLocal::create(folder.path()).expect("opens");
    let mut upload = store.put_multipart(&Path::from("big")).await.expect("begins");
    upload.put_part("ab".into()).await.expect("puts");
    upload.put_part("cd".into()).await.expect("puts");
    upload.complete().await.expect("completes");
    assert_eq!(store.get(&Path::from("big")).await.expect("there").bytes().await.expect("reads"), "abcd");
}

#[tokio::test]
async fn staging_files_of_a_crash_are_invisible_and_swept_when_old() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("a")).expect("creates");
    let (old, young) = (folder.path().join("a/x.json#17"), folder.path().join("a/x.json#18"));
    std::fs::write(&young, "half").expect("writes");
    let file = std::fs::File::create(&old).expect("creates");
    let long_ago = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000);
    file.set_modified(long_ago).expect("sets");
    let named = std::fs::File::create(folder.path().join("a/kept#name")).expect("creates");
    named.set_modified(long_ago).expect("sets");
    let store = FsyncLocal::create(folder.path()).expect("opens");
    assert_eq!((old.exists(), young.exists(), folder.path().join("a/kept#name").exists()), (false, true, true));
    let seen: Vec<_> = store.list(None).try_collect().await.expect("lists");
    assert!(seen.iter().all(|m| !m.location.as_ref().contains("x.json")), "{seen:?}");
}

#[test]
fn urls_that_cannot_be_opened_are_named() {
    for url in ["", "nonsense", "ftp://x/y", "file://host/x"] {
        let refused = open_store(url, []);
        assert!(matches!(&refused, Err(StorageError::Conflict(why)) if why.contains(&format!("`{url}`"))), "{url}: {refused:?}");
    }
}

#[tokio::test]
async fn a_bucket_with_a_prefix_is_configured_by_the_clouds_own_variables_only() {
    let env = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Vec<_>>();
    let known = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "secret"), ("AWS_REGION", "eu-west-9")];
    let store = open_store("s3://bucket/some/prefix", env(&known)).expect("opens");
    assert!(store.to_string().contains("some/prefix"), "{store}");
    let shown = format!("{store:?}");
    assert!(shown.contains("eu-west-9") && shown.contains("bucket"), "{shown}");
    let stray = open_store("s3://bucket", env(&[("REGION", "nowhere-1"), ("BUCKET", "other")])).expect("opens");
    let shown = format!("{stray:?}");
    assert!(!shown.contains("nowhere-1") && !shown.contains("other"), "{shown}");
}

#[tokio::test]
async fn a_store_has_one_bus() {
    for fault in [None, Some(Fault::LosesAnswer), Some(Fault::LandsThenConflicts)] {
        let store = FaultStore::new();
        fault.into_iter().for_each(|f| store.break_put("bus.json", f));
        claim_bus(store.as_ref(), "log:one").await.expect("claims");
        claim_bus(store.as_ref(), "log:one").await.expect("confirms");
        let refused = claim_bus(store.as_ref(), "kafka:two").await;
        assert!(
            matches!(&refused, Err(StorageError::Conflict(why)) if why.contains("log:one") && why.contains("kafka:two")),
            "{refused:?}"
        );
    }
    let store = FaultStore::new();
    store.break_put("bus.json", Fault::Fails);
    assert!(matches!(claim_bus(store.as_ref(), "a").await, Err(StorageError::ObjectStore { .. })));
    claim_bus(store.as_ref(), "b").await.expect("nobody has claimed it");
    store.put(&Path::from("bus.json"), "{".into()).await.expect("puts");
    assert!(matches!(claim_bus(store.as_ref(), "b").await, Err(StorageError::Corrupt { .. })));
}

#[tokio::test]
async fn a_lease_has_one_holder_until_it_ends() {
    let (store, clock) = (Arc::new(InMemory::new()), JumpClock::new());
    let leases = Leases::new(store.clone(), clock.clone());
    let lease = leases.acquire("compact", "a", TTL).await.expect("works").expect("free");
    assert_eq!(leases.acquire("compact", "b", TTL).await.expect("works"), None);
    assert!(leases.acquire("other", "b", TTL).await.expect("works").is_some());
    let renewed = leases.acquire("compact", "a", TTL).await.expect("works").expect("its own");
    assert_eq!((lease.number, renewed.number), (1, 2));
    clock.advance(TTL + Duration::from_millis(1));
    assert_eq!(leases.acquire("compact", "b", TTL).await.expect("works").expect("ended").number, 3);
    assert_eq!(leases.acquire("compact", "a", TTL).await.expect("works"), None);
}

#[tokio::test]
async fn a_released_lease_is_free_at_once_and_old_numbers_go() {
    let (store, clock) = (Arc::new(InMemory::new()), JumpClock::new());
    let leases = Leases::new(store.clone(), clock);
    for round in 0..20 {
        let holder = format!("h{round}");
        let lease = leases.acquire("x", &holder, TTL).await.expect("works").expect("free");
        leases.release(&lease).await.expect("works");
    }
    let left: Vec<_> = store.list(Some(&Path::from("lease/x"))).try_collect::<Vec<_>>().await.expect("lists");
    assert!(left.len() <= 10, "{}", left.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_rivals_one_gets_the_lease() {
    let (store, clock) = (Arc::new(InMemory::new()), JumpClock::new());
    let rivals: Vec<_> = (0..8)
        .map(|i| {
            let leases = Leases::new(store.clone(), clock.clone());
            tokio::spawn(async move { leases.acquire("x", &format!("r{i}"), TTL).await.expect("works").is_some() })
        })
        .collect();
    let mut winners = 0;
    for rival in rivals {
        winners += usize::from(rival.await.expect("no panic"));
    }
    assert_eq!(winners, 1);
}
