//! The facts that the host needs from a kernel's source: the names of its operands and its plain integers.

/// Names of the entry's pointers, in order.
pub(crate) fn pointers(source: &str, entry: &str) -> Result<Vec<String>, String> {
    let parameters = source
        .split_once("extern \"C\" __global__")
        .and_then(|(_, after)| after.split_once(&format!("{entry}(")))
        .and_then(|(_, after)| after.split_once('{'))
        .map(|(parameters, _)| parameters)
        .ok_or_else(|| format!("expected an entry extern \"C\" __global__ … {entry}(…) {{"))?;
    let listed: Vec<&str> = parameters
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .collect();
    Ok(listed
        .join(" ")
        .split(',')
        .filter_map(|parameter| parameter.rsplit_once('*'))
        .map(|(_, name)| {
            name.trim_matches(|c: char| c.is_whitespace() || c == ')')
                .to_owned()
        })
        .collect())
}

/// Names and values of the source's `#define`s that are plain integers outside every condition.
pub(crate) fn integers(source: &str) -> Vec<(String, u64)> {
    let mut depth = 0_usize;
    let mut found = Vec::new();
    for line in source.lines() {
        let line = line.trim_start();
        if line.starts_with("#if") {
            depth += 1;
        } else if line.starts_with("#endif") {
            depth = depth.saturating_sub(1);
        } else if depth == 0
            && let Some(define) = line.strip_prefix("#define ")
        {
            let words: Vec<&str> = define
                .split("//")
                .next()
                .unwrap_or(define)
                .split_whitespace()
                .collect();
            if let [name, value] = words[..]
                && let Some(value) = integer(value)
            {
                found.push((name.to_owned(), value));
            }
        }
    }
    found
}

/// `12`, `0x1fu`
fn integer(text: &str) -> Option<u64> {
    let text = text.trim_end_matches('u');
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}
