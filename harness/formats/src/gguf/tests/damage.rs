use super::*;

#[test]
fn weights_that_are_not_finite_are_named() {
    let (mut writer, _) = converted();
    writer.tensor("blk.0.ffn_up.weight").3[..4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    assert!(
        matches!(writer.open().unwrap().block(0), Err(Error::NotFinite { tensor, element: 0, .. })
        if tensor == "blk.0.ffn_up.weight")
    );
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = converted().0.bytes();
    // every truncation in the header, a sample of those in the data
    for length in (4..1500).chain((1500..bytes.len()).step_by(61)) {
        let (_folder, path) = write(&bytes[..length]);
        let result = Model::open(path);
        assert!(
            matches!(result, Err(Error::Truncated { .. })),
            "{length}: {result:?}"
        );
    }
}

#[test]
fn counts_that_the_file_cannot_hold_are_refused() {
    let bytes = converted().0.bytes();
    // number of tensors, number of fields, length of the first name
    for position in [8, 16, 24] {
        let mut bytes = bytes.clone();
        bytes[position..position + 8].copy_from_slice(&(u64::MAX / 2).to_le_bytes());
        let (_folder, path) = write(&bytes);
        assert!(Model::open(path).is_err(), "{position}");
    }
    for list in [Put::Floats(vec![1.0]), Put::Texts(vec!["a".into()])] {
        let mut writer = converted().0;
        writer.metadata.insert(0, ("x".into(), list));
        let mut bytes = writer.bytes();
        // magic, version, two counts, name, type of field, type of elements; the count follows
        let count = 24 + 9 + 4 + 4;
        for lie in [u64::MAX, 1 << 61, 1 << 32, bytes.len() as u64] {
            bytes[count..count + 8].copy_from_slice(&lie.to_le_bytes());
            let (_folder, path) = write(&bytes);
            assert!(
                matches!(Model::open(path), Err(Error::Truncated { what, .. }) if what == "x"),
                "{lie}"
            );
        }
    }
}

#[test]
fn tensors_outside_or_on_top_of_each_other_are_refused() {
    let writer = converted().0;
    let bytes = writer.bytes();
    // the second tensor's offset is the last field of its header
    let name = b"output.weight";
    let at = bytes
        .windows(name.len())
        .position(|window| window == name)
        .unwrap();
    let offset = at + name.len() + 4 + 2 * 8 + 4;
    for (value, overlap) in [(0_u64, true), (1 << 40, false), (u64::MAX - 31, false)] {
        let mut bytes = bytes.clone();
        bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        let (_folder, path) = write(&bytes);
        match Model::open(path) {
            Err(Error::Offsets { tensor, .. }) if overlap => assert_eq!(tensor, "token_embd.weight"),
            Err(Error::Truncated { .. }) if !overlap => {}
            other => panic!("{value}: {other:?}"),
        }
    }
    let mut unaligned = bytes.clone();
    unaligned[offset] = 8;
    let (_folder, path) = write(&unaligned);
    assert!(
        matches!(Model::open(path), Err(Error::Offsets { expected, .. }) if expected.contains("multiple of 32"))
    );
}

#[test]
fn shapes_that_overflow_or_split_a_block_are_refused() {
    let mut writer = converted().0;
    writer.tensor("blk.0.ffn_up.weight").1 = vec![1 << 40, 1 << 40];
    assert!(matches!(writer.open(), Err(Error::Offsets { .. })));
    let mut writer = converted().0;
    writer.tensor("blk.0.ffn_up.weight").2 = 8;
    assert!(
        matches!(writer.open(), Err(Error::Offsets { expected, .. }) if expected.contains("multiple of 32 elements"))
    );
}

#[test]
fn other_versions_and_files_are_refused() {
    for version in [0, 1, 4, 3_u32.swap_bytes()] {
        let writer = Writer {
            version,
            ..converted().0
        };
        assert!(matches!(writer.open(), Err(Error::Header { .. })), "{version}");
    }
    let (_folder, path) = write(b"GGML and so on");
    assert!(matches!(Model::open(path), Err(Error::Kind { .. })));
    let mut writer = converted().0;
    writer.set("general.alignment", Put::U32(24));
    assert!(matches!(writer.open(), Err(Error::Field { field, .. }) if field == "general.alignment"));
}
