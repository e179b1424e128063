#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    manyhands_crdt_fuzz::targets::push(data);
});
