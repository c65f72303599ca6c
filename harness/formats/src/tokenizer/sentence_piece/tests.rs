use super::*;

/// `<unk>`, `<s>`, `</s>`, 256 bytes, then these pieces.
fn model(kind: i32, pieces: &[(&str, f32)]) -> Model {
    let piece = |text: &str, score: f32, kind: i32| Piece {
        text: Some(text.into()),
        score: Some(score),
        kind: Some(kind),
    };
    let mut all = vec![
        piece("<unk>", 0.0, UNKNOWN),
        piece("<s>", 0.0, CONTROL),
        piece("</s>", 0.0, CONTROL),
    ];
    all.extend((0..=255).map(|byte| piece(&format!("<0x{byte:02X}>"), 0.0, BYTE)));
    all.extend(pieces.iter().map(|(text, score)| piece(text, *score, NORMAL)));
    Model {
        pieces: all,
        trainer: Some(Trainer {
            model_type: Some(kind),
            byte_fallback: Some(true),
            ..Trainer::default()
        }),
        normalizer: Some(Normalizer {
            remove_extra_whitespaces: Some(false),
            ..Normalizer::default()
        }),
    }
}

/// Id of the first piece after the bytes.
const FIRST: u32 = 259;

fn open(model: &Model) -> Result<Tokenizer> {
    from_bytes(
        Path::new("tokenizer.model"),
        &model.encode_to_vec(),
        &Beside::default(),
    )
}

fn encode(model: &Model, text: &str) -> Vec<u32> {
    open(model).unwrap().encode(text, false).unwrap()
}

/// The best segmentation of a text without spaces, by trying all.
fn best(pieces: &[(&str, f32)], text: &str) -> Option<(f32, Vec<u32>)> {
    if text.is_empty() {
        return Some((0.0, Vec::new()));
    }
    let candidates = pieces.iter().enumerate().filter_map(|(id, (piece, score))| {
        let (rest, ids) = best(pieces, text.strip_prefix(piece)?)?;
        let ids = std::iter::once(FIRST + id as u32).chain(ids).collect();
        Some((score + rest, ids))
    });
    candidates.max_by(|a, b| a.0.total_cmp(&b.0))
}

#[test]
fn bpe_joins_by_score() {
    let pieces = [
        ("▁", -9.0),
        ("a", -9.0),
        ("b", -9.0),
        ("c", -9.0),
        ("ab", -2.0),
        ("bc", -1.0),
        ("▁a", -3.0),
    ];
    let model = model(BPE, &pieces);
    let (space, a, c, ab, bc, space_a) = (FIRST, FIRST + 1, FIRST + 3, FIRST + 4, FIRST + 5, FIRST + 6);
    // "bc" outranks "ab", so "abc" is a + bc although "ab" comes first
    assert_eq!(encode(&model, "abc"), [space_a, bc]);
    assert_eq!(encode(&model, "cab"), [space, c, ab]);
    assert_eq!(encode(&model, "a  a"), [space_a, space, space_a]);
    assert_eq!(encode(&model, "bc\u{e9}"), [space, bc, 3 + 0xc3, 3 + 0xa9]);
    let tokenizer = open(&model).unwrap();
    assert_eq!(tokenizer.encode("a", true).unwrap(), [1, space_a]);
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)));
    let ids = [1, space_a, a, 3 + 0xc3, 3 + 0xa9, 2];
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "aa\u{e9}");
}

#[test]
fn unigram_takes_the_best_segmentation() {
    let pieces = [
        ("▁", -1.0),
        ("a", -2.5),
        ("b", -2.0),
        ("ab", -3.0),
        ("aba", -4.75),
        ("bb", -3.5),
        ("ba", -4.25),
        ("0", -5.0),
    ];
    let model = model(UNIGRAM, &pieces);
    for text in ["a", "ab", "abab", "aabba", "babab", "abaabbbaab"] {
        let (_, expected) = best(&pieces, &format!("▁{text}")).unwrap();
        assert_eq!(encode(&model, text), expected, "{text}");
    }
    // the bytes of what has no piece, and no piece for what looks like a byte's
    assert_eq!(
        encode(&model, "a\u{e9}b"),
        [FIRST, FIRST + 1, 3 + 0xc3, 3 + 0xa9, FIRST + 2]
    );
    let (byte, zero) = (|byte: u8| 3 + u32::from(byte), FIRST + 7);
    let literal = [FIRST, byte(b'<'), zero, byte(b'x'), zero, zero, byte(b'>')];
    assert_eq!(encode(&model, "<0x00>"), literal);
}

#[test]
fn without_byte_fallback_a_run_of_unknown_characters_is_one_token() {
    for kind in [BPE, UNIGRAM] {
        let mut model = model(kind, &[("▁", -1.0), ("a", -2.0)]);
        model.trainer.as_mut().unwrap().byte_fallback = None;
        assert_eq!(encode(&model, "xya"), [FIRST, 0, FIRST + 1], "{kind}");
    }
}

#[test]
fn spaces_follow_the_normalizer() {
    let mut model = model(BPE, &[("▁", -1.0), ("a", -2.0)]);
    let (space, a) = (FIRST, FIRST + 1);
    assert_eq!(
        encode(&model, " a  a "),
        [space, space, a, space, space, a, space]
    );
    model.normalizer.as_mut().unwrap().remove_extra_whitespaces = None;
    assert_eq!(encode(&model, " a  a "), [space, a, space, a]);
    model.normalizer.as_mut().unwrap().add_dummy_prefix = Some(false);
    assert_eq!(encode(&model, " a  a "), [a, space, a]);
    assert_eq!(open(&model).unwrap().decode(&[space, a], true).unwrap(), " a");
    let beside = Beside {
        prefix: Some(true),
        ..Beside::default()
    };
    let bytes = model.encode_to_vec();
    let prefixed = from_bytes(Path::new("tokenizer.model"), &bytes, &beside).unwrap();
    assert_eq!(prefixed.encode("a", false).unwrap(), [space, a]);
}

/// A table that replaces A by a: a trie of 256 units, then the replacements.
fn charsmap() -> Vec<u8> {
    let mut units = [0_u32; 256];
    // the root's children begin at 1; A's unit has a leaf, whose value 0 is the place of its replacement
    units[0] = 1 << 10;
    units[usize::from(b'A') ^ 1] = u32::from(b'A') | 1 << 8 | 66 << 10;
    let table = units.iter().flat_map(|unit| unit.to_le_bytes());
    [1024_u32.to_le_bytes().to_vec(), table.collect(), b"a\0".to_vec()].concat()
}

#[test]
fn characters_are_replaced_by_the_models_table() {
    let mut model = model(UNIGRAM, &[("▁", -1.0), ("a", -2.0)]);
    model.normalizer.as_mut().unwrap().precompiled_charsmap = Some(charsmap());
    assert_eq!(encode(&model, "Aa"), [FIRST, FIRST + 1, FIRST + 1]);
    for broken in [
        vec![1],
        vec![0; 8],
        [&u32::MAX.to_le_bytes()[..], &[0; 64]].concat(),
    ] {
        model.normalizer.as_mut().unwrap().precompiled_charsmap = Some(broken);
        assert!(
            matches!(open(&model), Err(Error::Field { field, .. }) if field.ends_with("precompiled_charsmap"))
        );
    }
}

#[test]
fn what_would_give_other_tokens_is_refused() {
    let whole = model(BPE, &[("▁", -1.0), ("a", -2.0)]);
    let unsupported = |model: &Model, name: &str| {
        let result = open(model);
        assert!(
            matches!(&result, Err(Error::Unsupported { field, .. }) if field.contains(name)),
            "{result:?}"
        );
    };
    let mut word = whole.clone();
    word.trainer.as_mut().unwrap().model_type = Some(3);
    unsupported(&word, "model_type");
    let mut suffix = whole.clone();
    suffix.trainer.as_mut().unwrap().treat_whitespace_as_suffix = Some(true);
    unsupported(&suffix, "treat_whitespace_as_suffix");
    let mut unused = whole.clone();
    unused.pieces[259].kind = Some(5);
    unsupported(&unused, "pieces[259].type");
    let field = |model: &Model, name: &str| {
        let result = open(model);
        assert!(
            matches!(&result, Err(Error::Field { field, .. }) if field.contains(name)),
            "{result:?}"
        );
    };
    let mut twice = whole.clone();
    twice.pieces[260].text = Some("▁".into());
    field(&twice, "pieces[260].piece");
    let mut infinite = whole.clone();
    infinite.pieces[260].score = Some(f32::NAN);
    field(&infinite, "pieces[260].score");
    let mut no_unknown = whole.clone();
    no_unknown.pieces[0].kind = Some(CONTROL);
    field(&no_unknown, "pieces");
    let mut no_byte = whole;
    no_byte.pieces.remove(3);
    field(&no_byte, "byte_fallback");
}

#[test]
fn other_files_are_named() {
    for (bytes, expected) in [
        (&b"IQ== 0\nIg== 1\n"[..], "tiktoken"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\xff\xff", "another file"),
        (b"", "another file"),
    ] {
        let result = from_bytes(Path::new("tokenizer.model"), bytes, &Beside::default());
        assert!(
            matches!(&result, Err(Error::Tokenizer { reason, .. }) if reason.contains(expected)),
            "{result:?}"
        );
    }
}

#[test]
fn tokens_beside_the_file_follow_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = model(BPE, &[("▁", -1.0), ("a", -2.0)]);
    model.pieces.push(Piece {
        text: Some("<user>".into()),
        score: Some(0.0),
        kind: Some(USER_DEFINED),
    });
    let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let read = || {
        let beside = Beside::read(folder.path())?;
        from_bytes(Path::new("tokenizer.model"), &model.encode_to_vec(), &beside)
    };
    put("added_tokens.json", "{\"<pad>\": 262}");
    put(
        "tokenizer_config.json",
        "{\"add_prefix_space\": false, \"added_tokens_decoder\": {\"263\": {\"content\": \"<end>\", \"special\": true}}}",
    );
    let tokenizer = read().unwrap();
    let (a, user) = (FIRST + 1, FIRST + 2);
    assert_eq!(
        tokenizer.encode("a<user>a<pad><end>", false).unwrap(),
        [a, user, a, 262, 263]
    );
    assert_eq!(tokenizer.decode(&[user, 262, 263], true).unwrap(), "<user><pad>");
    assert!(tokenizer.adds_bos() && !tokenizer.adds_eos());
    put(
        "tokenizer_config.json",
        "{\"add_bos_token\": false, \"add_eos_token\": true}",
    );
    let tokenizer = read().unwrap();
    assert!(!tokenizer.adds_bos() && tokenizer.adds_eos());
    put("added_tokens.json", "{\"<pad>\": 300}");
    assert!(matches!(read(), Err(Error::Field { found, .. }) if found.contains("<pad>")));
}
