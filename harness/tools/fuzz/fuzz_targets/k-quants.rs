#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| aqlm_fuzz::read("k-quants", bytes));
