//! Compiles the schema without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["manyhands/v1/session.proto", "manyhands/v1/document.proto", "manyhands/v1/bus.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
