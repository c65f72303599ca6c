use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::Path;

use super::python_random::PythonRandom;
use aqlm_formats::texts::{TextFormat, documents};
use aqlm_formats::tokenizer::Tokenizer;
use aqlm_formats::{Error, Result};

/// Windows of both protocols.
pub(super) const WINDOWS: usize = 256;

/// Documents that the newer protocol joins.
const JOINED: usize = 1100;

/// Random slices of random documents, with Python's random numbers of seed 0: a document index is drawn until
/// the document has at least `ctx` tokens, then the start of the slice. A document of exactly `ctx` tokens is
/// taken whole, without a draw.
pub(super) fn drawn(
    path: &Path,
    format: Option<TextFormat>,
    tokenizer: &Tokenizer,
    ctx: usize,
    most: usize,
) -> Result<Vec<Vec<u32>>> {
    let documents = documents(path, format)?;
    let last = u32::try_from(documents.len() - 1)
        .map_err(|_| Error::argument("documents", "fewer than 2^32", documents.len().to_string()))?;
    let mut random = PythonRandom::new(0);
    // `None` for documents that are too short; once all are, nothing is left to draw.
    let mut read: HashMap<u32, Option<Vec<u32>>> = HashMap::new();
    let (mut short, mut longest) = (0, 0);
    let mut windows = Vec::new();
    while windows.len() < WINDOWS.min(most) {
        let index = random.up_to(last);
        let tokens = match read.entry(index) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let tokens = tokenizer.encode(&documents[index as usize], true)?;
                longest = longest.max(tokens.len());
                let long = tokens.len() >= ctx;
                short += usize::from(!long);
                unknown.insert(long.then_some(tokens))
            }
        };
        if let Some(tokens) = tokens {
            let start = match tokens.len() - ctx {
                0 => 0,
                spare => random.up_to(spare as u32 - 1) as usize,
            };
            windows.push(tokens[start..start + ctx].to_vec());
        } else if short == documents.len() {
            return Err(Error::TooShort {
                path: path.into(),
                what: format!("a document of {ctx}"),
                expected: ctx,
                found: longest,
            });
        }
    }
    Ok(windows)
}

/// The first documents joined by spaces and tokenized together.
pub(super) fn joined(
    path: &Path,
    format: Option<TextFormat>,
    tokenizer: &Tokenizer,
    ctx: usize,
) -> Result<Vec<Vec<u32>>> {
    let mut documents = documents(path, format)?;
    documents.truncate(JOINED);
    let tokens = tokenizer.encode(&documents.join(" "), true)?;
    if tokens.len() < ctx {
        return Err(Error::TooShort {
            path: path.into(),
            what: format!("one window of {ctx}"),
            expected: ctx,
            found: tokens.len(),
        });
    }
    let windows = tokens.chunks_exact(ctx).take(WINDOWS);
    Ok(windows.map(<[u32]>::to_vec).collect())
}
