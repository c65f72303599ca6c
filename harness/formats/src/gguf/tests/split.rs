use super::*;

/// The fixture in this many parts, with its tensors dealt out in order.
fn parts(count: usize) -> Vec<Writer> {
    let (whole, _) = converted();
    let total = whole.tensors.len();
    let mut tensors = whole.tensors.into_iter();
    (0..count)
        .map(|number| {
            let metadata = if number == 0 {
                whole.metadata.clone()
            } else {
                Vec::new()
            };
            let mut part = Writer {
                version: 3,
                metadata,
                tensors: tensors.by_ref().take(total.div_ceil(count)).collect(),
            };
            part.set("split.no", Put::U32(number as u32));
            part.set("split.count", Put::U32(count as u32));
            part.set("split.tensors.count", Put::U32(total as u32));
            part
        })
        .collect()
}

fn path_of(folder: &Path, number: usize, count: usize) -> PathBuf {
    folder.join(format!("m-{:05}-of-{count:05}.gguf", number + 1))
}

fn write_parts(parts: &[Writer]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (number, part) in parts.iter().enumerate() {
        std::fs::write(path_of(folder.path(), number, parts.len()), part.bytes()).unwrap();
    }
    folder
}

#[test]
fn any_part_opens_the_whole() {
    let whole = converted().0.open().unwrap();
    for count in [2, 3] {
        let folder = write_parts(&parts(count));
        for number in 0..count {
            let model = Model::open(path_of(folder.path(), number, count)).unwrap();
            assert!(!model.config().tied);
            assert_eq!(model.fingerprint().unwrap(), whole.fingerprint().unwrap());
        }
    }
}

#[test]
fn missing_parts_are_named() {
    let folder = write_parts(&parts(6));
    for number in 1..6 {
        std::fs::remove_file(path_of(folder.path(), number, 6)).unwrap();
    }
    let Err(Error::Kind { expected, found, .. }) = Model::open(path_of(folder.path(), 0, 6)) else {
        panic!("parts are missing");
    };
    assert!(expected.contains("all 6 parts"), "{expected}");
    assert_eq!(
        found,
        "no m-00002-of-00006.gguf, no m-00003-of-00006.gguf, no m-00004-of-00006.gguf, nor 2 others"
    );
}

#[test]
fn a_part_under_another_name_is_refused() {
    let (_folder, path) = parts(2)[1].write();
    assert!(
        matches!(Model::open(path), Err(Error::Kind { expected, .. }) if expected.contains("-00002-of-00002.gguf"))
    );
}

#[test]
fn parts_that_disagree_are_refused() {
    let open = |parts: &[Writer]| Model::open(path_of(write_parts(parts).path(), 0, parts.len()));
    for (key, value) in [("split.no", 0), ("split.count", 3)] {
        let mut parts = parts(2);
        parts[1].set(key, Put::U32(value));
        assert!(
            matches!(open(&parts), Err(Error::Field { field, .. }) if field == key),
            "{key}"
        );
    }
    let mut of_three = parts(3);
    of_three[0].set("split.tensors.count", Put::U32(5));
    assert!(matches!(open(&of_three), Err(Error::Field { field, .. }) if field == "split.tensors.count"));
    let mut twice = parts(2);
    let tensor = twice[0].tensors[0].clone();
    twice[1].tensors.push(tensor);
    assert!(matches!(open(&twice), Err(Error::Header { found, .. }) if found.contains("token_embd.weight")));
}

#[test]
fn impossible_numbers_of_parts_are_refused() {
    for (key, value) in [("split.count", u32::MAX), ("split.no", 2)] {
        let mut parts = parts(2);
        parts[0].set(key, Put::U32(value));
        let (_folder, path) = parts[0].write();
        assert!(
            matches!(Model::open(path), Err(Error::Field { field, .. }) if field == key),
            "{key}"
        );
    }
}
