use super::*;
use bytes::Bytes;
use types::RunReport;

fn compute<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    // Places block, as on the compute thread.
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

async fn filled(files: &[(&str, &[u8])]) -> Store {
    let store = Store::memory();
    for (key, content) in files {
        store.put(key, Bytes::copy_from_slice(content)).await.unwrap();
    }
    store
}

fn places(bucket: &Store, own: &Store) -> Places {
    let scratch = std::env::temp_dir();
    let allowed = ["s3://team/models".to_owned(), "s3://team/text/".to_owned(), "s3://team/out".to_owned()];
    let places = Places::new(&allowed, own.clone(), &scratch).unwrap();
    ["models", "text", "out"]
        .iter()
        .fold(places, |places, folder| places.with_bucket(&format!("s3://team/{folder}"), bucket.clone()))
}

const LARGE: u64 = 3 * (8 << 20) + 5;

fn large() -> Vec<u8> {
    (0..LARGE).map(|n| (n * 31 % 251) as u8).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_s_small_files_are_copied_and_its_tensors_read_in_ranges() {
    let weights = large();
    let bucket = filled(&[
        ("tiny/config.json", b"{}"),
        ("tiny/model.safetensors", &weights),
        ("tiny/onnx/model.onnx", b"y"),
        ("tinyother/config.json", b"z"),
        ("tiny/folder", b""),
    ])
    .await;
    let places = places(&bucket, &Store::memory());
    let place = compute(|| places.model("s3://team/models/tiny")).unwrap();
    assert!(place.folder.ends_with("tiny"), "cards name it: {}", place.folder.display());
    let mut names: Vec<_> = std::fs::read_dir(&place.folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["config.json"]);
    let tensors = place.tensors.clone().unwrap();
    assert_eq!((tensors.size("model.safetensors"), tensors.size("config.json")), (Some(LARGE), None));
    for range in [0..8, 5..LARGE, LARGE - 1..LARGE, 7..7] {
        let expected = weights[range.start as usize..range.end as usize].to_vec();
        let read = || tensors.read("model.safetensors", range.clone()).unwrap();
        assert!(compute(read) == expected, "{range:?}");
        tensors.read_ahead("model.safetensors", range.clone());
        assert!(compute(read) == expected, "{range:?} read ahead");
    }
    let again = compute(|| places.model("s3://team/models/tiny")).unwrap();
    assert_eq!(again.folder, place.folder, "copied once");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_roles_of_one_process_may_want_the_same_model_at_a_time() {
    let small: Vec<(String, Vec<u8>)> = (0..20).map(|n| (format!("m/{n}.json"), vec![n; 50_000])).collect();
    let bucket = filled(&small.iter().map(|(key, bytes)| (key.as_str(), bytes.as_slice())).collect::<Vec<_>>()).await;
    let places = places(&bucket, &Store::memory());
    let folders = std::thread::scope(|scope| {
        let asked: Vec<_> =
            (0..4).map(|_| scope.spawn(|| places.model("s3://team/models/m").unwrap().folder)).collect();
        asked.into_iter().map(|one| one.join().unwrap()).collect::<std::collections::BTreeSet<_>>()
    });
    assert_eq!(folders.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_changes_is_copied_again_and_its_old_tensors_are_refused() {
    let bucket = filled(&[("m/config.json", b"1"), ("m/model.safetensors", b"old bytes")]).await;
    let places = places(&bucket, &Store::memory());
    let before = compute(|| places.model("s3://team/models/m")).unwrap();
    bucket.put("m/config.json", Bytes::from_static(b"2")).await.unwrap();
    bucket.put("m/model.safetensors", Bytes::from_static(b"new bytes")).await.unwrap();
    let old = before.tensors.unwrap();
    let error = compute(|| old.read("model.safetensors", 0..4)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    let after = compute(|| places.model("s3://team/models/m")).unwrap();
    assert_eq!(std::fs::read(after.folder.join("config.json")).unwrap(), b"2");
    assert_eq!(compute(|| after.tensors.unwrap().read("model.safetensors", 0..3)).unwrap(), b"new");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_allowed_is_reached() {
    let bucket = filled(&[("m/config.json", b"1")]).await;
    let places = places(&bucket, &Store::memory());
    let refused = |address: &str| compute(|| places.model(address)).unwrap_err();
    for other in ["s3://team/secret/m", "s3://team/models2/m", "s3://other/models/m", "s3://team"] {
        let error = refused(other);
        assert!(matches!(error, PlaceError::NotAllowed { .. }), "{other}: {error}");
        assert_eq!((error.class(), error.reason()), (FailureClass::InvalidInput, Reason::AddressRefused));
    }
    for bad in ["gs://team/models/m", "s3://team/models/../secret/m", "artifact:abc", "http://team"] {
        assert!(matches!(refused(bad), PlaceError::BadAddress { .. }), "{bad}");
    }
    assert!(matches!(refused("s3://team/models/none"), PlaceError::Nothing { .. }));
    let alone = Places::paths_only();
    assert!(compute(|| alone.model("s3://team/models/m")).unwrap_err().to_string().contains("only paths"));
    assert_eq!(compute(|| alone.model("/some/where")).unwrap().folder, Path::new("/some/where"));
    assert_eq!(compute(|| alone.text(&["/a/*.txt".to_owned()])).unwrap(), ["/a/*.txt"]);
    assert!(Places::new(&["/a".to_owned()], Store::memory(), Path::new("/tmp")).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn text_is_copied_from_objects_folders_and_artifacts_and_changed_artifacts_are_refused() {
    // A console's mark of a folder is listed as an object without a byte.
    let objects: [(&str, &[u8]); 5] =
        [("a.txt", b"one"), ("many/x", b""), ("many/x/b.jsonl", b"two"), ("many/c.txt", b"three"), ("many/y", b"")];
    let bucket = filled(&objects).await;
    let digest = blake3::hash(b"four").to_hex().to_string();
    let own = filled(&[(&format!("artifacts/{digest}"), b"four")]).await;
    let places = places(&bucket, &own);
    let asked = ["s3://team/text/a.txt".to_owned(), "s3://team/text/many".to_owned(), format!("artifact:{digest}.txt")];
    for _ in 0..2 {
        let paths = compute(|| places.text(&asked)).unwrap();
        assert_eq!(std::fs::read(&paths[0]).unwrap(), b"one");
        assert_eq!(std::fs::read(Path::new(&paths[1]).join("x/b.jsonl")).unwrap(), b"two");
        assert_eq!(std::fs::read(Path::new(&paths[1]).join("c.txt")).unwrap(), b"three");
        assert_eq!(std::fs::read(&paths[2]).unwrap(), b"four");
        let ending = Path::new(&paths[2]).extension();
        assert!(paths[0].ends_with("a.txt") && ending == Some("txt".as_ref()), "the ending says how it is read");
    }
    bucket.put("a.txt", Bytes::from_static(b"other")).await.unwrap();
    assert_eq!(std::fs::read(&compute(|| places.text(&asked[..1])).unwrap()[0]).unwrap(), b"other");
    let wrong = "0".repeat(64);
    own.put(&format!("artifacts/{wrong}"), Bytes::from_static(b"four")).await.unwrap();
    let error = compute(|| places.text(&[format!("artifact:{wrong}")])).unwrap_err();
    assert!(matches!(error, PlaceError::Damaged { .. }), "{error}");
    let gone = compute(|| places.text(&[format!("artifact:{}", "1".repeat(64))])).unwrap_err();
    assert_eq!(gone.reason(), Reason::ObjectNotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_is_copied_whole_and_what_is_another_run_s_stays() {
    let bucket = Store::memory();
    let places = places(&bucket, &Store::memory());
    let address = "s3://team/out/small";
    let weights = large();
    let write = |report: &str| {
        let place = compute(|| places.output(address)).unwrap();
        std::fs::create_dir_all(place.folder()).unwrap();
        for (name, content) in
            [(RunReport::FILE, report.as_bytes()), ("config.json", b"{}"), ("w.safetensors", &weights)]
        {
            std::fs::write(place.folder().join(name), content).unwrap();
        }
        place
    };
    bucket.put("small/x", Bytes::new()).await.unwrap(); // as a console's mark of a folder is listed
    assert!(!compute(|| places.is_occupied(address)).unwrap());
    // What a killed copy leaves is no model yet, and the same run goes on with it.
    bucket.put(&format!("small/{}", RunReport::FILE), Bytes::from_static(b"mine")).await.unwrap();
    bucket.put("small/w.safetensors", Bytes::from_static(b"half")).await.unwrap();
    assert!(compute(|| places.is_occupied(address)).unwrap());
    write("mine").publish().await.unwrap();
    assert!(bucket.get("small/w.safetensors").await.unwrap() == weights);
    assert_eq!(bucket.get("small/config.json").await.unwrap(), "{}");
    write("mine").publish().await.unwrap();
    let place = write("another's");
    let staging = place.folder().to_owned();
    let error = place.publish().await.unwrap_err();
    assert!(matches!(error, PlaceError::Occupied { .. }), "{error}");
    assert_eq!(bucket.get(&format!("small/{}", RunReport::FILE)).await.unwrap(), "mine");
    assert!(!staging.exists(), "a copy goes with its attempt");
    let (one, other) = (write("mine"), write("mine"));
    let (written, still) = (one.folder().to_owned(), other.folder().to_owned());
    one.publish().await.unwrap();
    assert!(!written.exists() && still.join("config.json").exists(), "attempts have nothing in common");

    // Of two runs that see an empty place, one gets it.
    bucket.delete_prefix("small").await.unwrap();
    let (one, other) = tokio::join!(write("one").publish(), write("other").publish());
    assert_eq!([one.is_ok(), other.is_ok()].iter().filter(|ok| **ok).count(), 1);
    let whose = bucket.get(&format!("small/{}", RunReport::FILE)).await.unwrap();
    assert_eq!(whose, if one.is_ok() { "one" } else { "other" });
}

#[test]
fn a_read_that_fails_is_told_as_what_the_store_said() {
    let gone = || StoreError::NotFound { key: "k".to_owned() };
    let told = |error| failure_of_read(&error);
    let lost = (FailureClass::Store, Reason::ObjectNotFound);
    assert_eq!(told(io::Error::other(gone())), lost);
    assert_eq!(told(io::Error::other(CheckpointError::Store(gone()))), lost);
    let of_model = told(io::Error::new(io::ErrorKind::NotFound, gone()));
    assert_eq!(of_model, (FailureClass::InvalidInput, Reason::ModelInvalid));
    let damaged = CheckpointError::Damaged { key: "k".to_owned(), problem: "p".to_owned() };
    let damaged = told(io::Error::new(io::ErrorKind::InvalidData, damaged));
    assert_eq!(damaged, (FailureClass::Numerical, Reason::DigestMismatch));
    assert_eq!(told(io::Error::other("x")), (FailureClass::Store, Reason::StoreUnavailable));
}
