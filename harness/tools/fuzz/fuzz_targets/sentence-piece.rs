#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| aqlm_fuzz::read("sentence-piece", bytes));
