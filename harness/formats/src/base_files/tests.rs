use ndarray::{Array2, s};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;
use crate::durable::write_file;
use std::io::Write;

const VOCAB: usize = 7;

fn windows() -> Vec<Vec<u32>> {
    (0..3u32)
        .map(|w| (0..6u32).map(|t| (w + t) % 7).collect())
        .collect()
}

fn as_slices(windows: &[Vec<u32>]) -> Vec<&[u32]> {
    windows.iter().map(Vec::as_slice).collect()
}

fn logits(seed: u64, rows: usize) -> Array2<f64> {
    let mut rng = StdRng::seed_from_u64(seed);
    Array2::from_shape_simple_fn((rows, VOCAB), || f64::from(rng.random_range(-9.0f32..9.0)))
}

fn key(first: usize) -> BaseKey {
    BaseKey {
        model_sha256: "ab".into(),
        protocol: "plain".into(),
        ctx: 6,
        first,
        backend: "cpu".into(),
    }
}

fn log_softmax(logits: &Array2<f64>) -> Array2<f64> {
    let mut rows = logits.clone();
    for mut row in rows.outer_iter_mut() {
        let sum: f64 = row.iter().map(|logit| logit.exp()).sum();
        row.mapv_inplace(|logit| logit - sum.ln());
    }
    rows
}

#[test]
fn the_lossless_form_gives_back_every_bit_of_windows_of_any_length() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("base.safetensors");
    let mut windows = windows();
    windows[2].truncate(3);
    let windows = as_slices(&windows);
    for (precision, first) in [(Precision::F32, 0), (Precision::F64, 1), (Precision::F32, 4)] {
        let rows = |window: usize| {
            let rows = logits(window as u64, rows_of(windows[window].len(), first));
            // numbers that f32 does not have
            if precision == Precision::F64 {
                rows.mapv(|x| x + 1e-13)
            } else {
                rows
            }
        };
        let mut file = LosslessWriter::new(&path, &key(first), precision, VOCAB, &windows).unwrap();
        for window in 0..3 {
            file.push(&rows(window).view()).unwrap();
        }
        file.finish().unwrap();
        let BaseFile::Lossless(base) = BaseFile::open(&path).unwrap() else {
            panic!("another kind")
        };
        assert_eq!(
            (base.key(), base.precision(), base.vocab()),
            (&key(first), precision, VOCAB)
        );
        assert_eq!(base.windows(), windows);
        for window in [2, 0, 1] {
            assert_eq!(base.logits(window).unwrap(), rows(window));
        }
    }
}

#[test]
fn a_file_name_depends_on_everything_that_the_rows_depend_on() {
    let windows = windows();
    let windows = as_slices(&windows);
    let name = key(0).file_name(&windows);
    assert_eq!(name, key(0).file_name(&windows));
    let mut other = key(0);
    other.model_sha256 = "ac".into();
    let others = [
        other.file_name(&windows),
        key(1).file_name(&windows),
        key(0).file_name(&windows[1..]),
    ];
    assert!(!others.contains(&name));
}

#[test]
fn sixteen_bits_are_within_half_a_step() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("base.kld");
    let windows = windows();
    let windows = as_slices(&windows);
    let mut rows: Vec<Array2<f64>> = (0..3).map(|window| logits(window, 2)).collect();
    // a token far below the others, a row of equal logits, a row without numbers
    rows[0][[0, 3]] = -40.0;
    rows[1].slice_mut(s![1, ..]).fill(2.0);
    rows[2].slice_mut(s![0, ..]).fill(f64::NAN);
    let mut file = LlamaCppWriter::new(&path, VOCAB, &windows).unwrap();
    for rows in &rows {
        file.push(&rows.view()).unwrap();
    }
    file.finish().unwrap();
    let BaseFile::LlamaCpp(base) = BaseFile::open(&path).unwrap() else {
        panic!("another kind")
    };
    assert_eq!((base.ctx(), base.vocab()), (6, VOCAB));
    assert_eq!(base.windows(), windows);
    for (window, rows) in rows.iter().enumerate() {
        let found = base.log_probabilities(window).unwrap();
        let expected = log_softmax(rows);
        for (found, expected) in found.outer_iter().zip(expected.outer_iter()) {
            let largest = expected.fold(f64::NEG_INFINITY, |most, &p| most.max(p));
            for (&found, &expected) in found.iter().zip(expected) {
                if expected.is_nan() {
                    assert!(found.is_nan());
                    continue;
                }
                // half of the largest step, and the rounding of scale and minimum to f32
                let clipped = expected.max(largest - 16.0);
                assert!(
                    (found - clipped).abs() <= 0.5 * 16.0 / 65_535.0 + 4e-6,
                    "{found} {clipped}"
                );
            }
        }
    }
}

#[test]
fn the_layout_is_that_of_llama_cpp() {
    // Written from the format's description, byte by byte: two chunks of 4 tokens, 3 tokens in the
    // vocabulary.
    let mut bytes = b"_logits_".to_vec();
    for number in [4i32, 3, 2, 0, 1, 2, 0, 2, 1, 0, 1] {
        bytes.extend(number.to_le_bytes());
    }
    for (scale, minimum, q) in [(0.5f32, -3.0f32, [2u16, 6, 0, 9]), (0.25, -2.0, [8, 0, 4, 9])] {
        bytes.extend(scale.to_le_bytes());
        bytes.extend(minimum.to_le_bytes());
        for q in q {
            bytes.extend(q.to_le_bytes());
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("base.kld");
    let write = |bytes: &[u8]| write_file(&path, |file| file.write_all(bytes)).unwrap();
    write(&bytes);
    let base = LlamaCppBase::open(&path).unwrap();
    assert_eq!(base.windows(), [[0, 1, 2, 0], [2, 1, 0, 1]]);
    assert_eq!(
        base.log_probabilities(0).unwrap().as_slice().unwrap(),
        [-2.0, 0.0, -3.0]
    );
    assert_eq!(
        base.log_probabilities(1).unwrap().as_slice().unwrap(),
        [0.0, -2.0, -1.0]
    );

    let refused = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = bytes.clone();
        change(&mut bytes);
        write(&bytes);
        BaseFile::open(&path).unwrap_err().to_string()
    };
    let set = |at: usize, value: i32| {
        move |bytes: &mut Vec<u8>| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes())
    };
    let message = refused(&|bytes| _ = bytes.pop());
    assert!(message.contains("truncated"), "{message}");
    let message = refused(&|bytes| bytes.push(0));
    assert!(message.contains("end at byte"), "{message}");
    let message = refused(&|bytes| bytes.truncate(12));
    assert!(message.contains("header"), "{message}");
    for (at, value, words) in [
        (8, 2, "n_ctx"),
        (12, -1, "n_vocab"),
        (16, 0, "n_chunk"),
        (24, 3, "token 1 of chunk 0"),
    ] {
        let message = refused(&set(at, value));
        assert!(message.contains(words), "{message}");
    }
    let message = refused(&|bytes| {
        for at in [8, 12, 16] {
            set(at, i32::MAX)(bytes);
        }
    });
    assert!(message.contains("base.kld"), "{message}");
    let message = refused(&|bytes| bytes[0] = b'x');
    assert!(message.contains("header"), "{message}");
}

#[test]
fn damaged_lossless_files_are_refused_by_field() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("base.safetensors");
    let windows = windows();
    let windows = as_slices(&windows);
    let mut file = LosslessWriter::new(&path, &key(0), Precision::F32, VOCAB, &windows).unwrap();
    (0..3).for_each(|window| file.push(&logits(window, 5).view()).unwrap());
    file.finish().unwrap();
    let whole = std::fs::read(&path).unwrap();
    let refused = |from: &str, to: &str| {
        let at = whole
            .windows(from.len())
            .position(|bytes| bytes == from.as_bytes())
            .unwrap();
        let mut bytes = whole.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        std::fs::write(&path, bytes).unwrap();
        BaseFile::open(&path).unwrap_err().to_string()
    };
    for (from, to, word) in [
        ("aqlm-base/1", "aqlm-base/2", "kind"),
        ("\"ctx\":\"6\"", "\"ctx\":\"x\"", "ctx"),
        ("\"first\":\"0\"", "\"first\":\"1\"", "logits"),
        ("\"model_sha256\"", "\"model_sha255\"", "model_sha256"),
    ] {
        let message = refused(from, to);
        assert!(message.contains(word), "{message}");
    }
    // a token id in the last but three numbers of the file
    let mut bytes = whole.clone();
    let at = bytes.len() - 4 * 4;
    bytes[at] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let message = BaseFile::open(&path).unwrap_err().to_string();
    assert!(message.contains("ids_sha256"), "{message}");
}

#[test]
fn an_unfinished_file_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let windows = windows();
    let windows = as_slices(&windows);
    let lossless = LosslessWriter::new(&folder.path().join("a"), &key(0), Precision::F32, VOCAB, &windows);
    let mut lossless = lossless.unwrap();
    lossless.push(&logits(0, 5).view()).unwrap();
    assert!(lossless.push(&logits(0, 11).view()).is_err());
    assert!(lossless.finish().is_err());
    let sixteen = LlamaCppWriter::new(&folder.path().join("b"), VOCAB, &windows).unwrap();
    assert!(sixteen.finish().is_err());
    assert!(LlamaCppWriter::new(&folder.path().join("c"), VOCAB, &[&[1, 2, 3], &[1, 2, 3, 4]]).is_err());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
