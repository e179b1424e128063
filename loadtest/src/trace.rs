//! Recorded editing sessions: who typed what where, and the text that came of it.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use flate2::read::GzDecoder;
use serde::Deserialize;

/// Most bytes of an unpacked trace that are read.
const TRACE_BYTES_MAX: u64 = 1 << 30;

/// A trace in which each edit follows the one before. Positions count Unicode scalar values.
#[derive(Debug)]
pub struct Trace {
    /// The text before the first edit.
    pub start: String,
    /// The text after the last edit.
    pub end: String,
    /// The edits.
    pub edits: Vec<Edit>,
}

/// One replacement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// Where, in the text after all edits before.
    pub at: usize,
    /// Characters deleted there.
    pub deleted: usize,
    /// What is inserted in their place.
    pub inserted: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Recording {
    #[serde(default)]
    start_content: String,
    end_content: String,
    txns: Vec<Txn>,
}

#[derive(Deserialize)]
struct Txn {
    patches: Vec<(usize, usize, String)>,
    #[serde(default)]
    parents: Option<Vec<usize>>,
}

impl Trace {
    /// Reads a trace file, gzipped or not, and checks that its edits make its end.
    pub fn read(path: &Path) -> anyhow::Result<Trace> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let mut bytes = Vec::new();
        file.take(TRACE_BYTES_MAX).read_to_end(&mut bytes)?;
        if bytes.starts_with(&[0x1f, 0x8b]) {
            let packed = std::mem::take(&mut bytes);
            GzDecoder::new(packed.as_slice()).take(TRACE_BYTES_MAX).read_to_end(&mut bytes)?;
        }
        Trace::parse(&bytes).with_context(|| format!("{} is not a sequential editing trace", path.display()))
    }

    /// The same from unpacked bytes.
    pub fn parse(bytes: &[u8]) -> anyhow::Result<Trace> {
        let file: Recording = serde_json::from_slice(bytes)?;
        for (index, txn) in file.txns.iter().enumerate() {
            // A history is linear when each transaction's only parent is the one before.
            let linear = txn.parents.as_ref().is_none_or(|parents| match index {
                0 => parents.is_empty(),
                _ => parents == &[index - 1],
            });
            if !linear {
                bail!("transaction {index} is concurrent with others; use the flattened form of this trace");
            }
        }
        let edits = file.txns.into_iter().flat_map(|txn| txn.patches).map(|(at, deleted, inserted)| Edit {
            at,
            deleted,
            inserted,
        });
        let trace = Trace { start: file.start_content, end: file.end_content, edits: edits.collect() };
        trace.check()?;
        Ok(trace)
    }

    /// A trace must fit itself, otherwise its end says nothing about who replays it.
    fn check(&self) -> anyhow::Result<()> {
        let mut len = self.start.chars().count();
        for (index, edit) in self.edits.iter().enumerate() {
            ensure!(edit.at + edit.deleted <= len, "edit {index} is after the end of the text");
            len = len - edit.deleted + edit.inserted.chars().count();
        }
        ensure!(len == self.end.chars().count(), "the edits make a text of another length than the end");
        Ok(())
    }

    /// The first `count` edits only, and the text that they make.
    #[must_use]
    pub fn truncated(mut self, count: usize) -> Trace {
        if count < self.edits.len() {
            self.edits.truncate(count);
            let mut text: Vec<char> = self.start.chars().collect();
            for edit in &self.edits {
                text.splice(edit.at..edit.at + edit.deleted, edit.inserted.chars());
            }
            self.end = text.into_iter().collect();
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    const SMALL: &str = r#"{"startContent":"ab","endContent":"xé😀b","txns":[
        {"time":"2021-04-19T06:06:58.219Z","patches":[[0,0,"x"]]},
        {"patches":[[1,1,"é"],[2,0,"😀"]]}]}"#;

    #[test]
    fn positions_count_scalars_and_patches_are_flattened() {
        let trace = Trace::parse(SMALL.as_bytes()).unwrap();
        assert_eq!((trace.start.as_str(), trace.end.as_str()), ("ab", "xé😀b"));
        let edits: Vec<_> =
            trace.edits.iter().map(|edit| (edit.at, edit.deleted, edit.inserted.as_str())).collect();
        assert_eq!(edits, [(0, 0, "x"), (1, 1, "é"), (2, 0, "😀")]);
        assert_eq!(trace.truncated(2).end, "xéb");
    }

    #[test]
    fn gzipped_and_plain_files_are_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let (plain, packed) = (dir.path().join("t.json"), dir.path().join("t.json.gz"));
        std::fs::write(&plain, SMALL).unwrap();
        let mut encoder = flate2::write::GzEncoder::new(File::create(&packed).unwrap(), Default::default());
        encoder.write_all(SMALL.as_bytes()).unwrap();
        encoder.finish().unwrap();
        assert_eq!(Trace::read(&plain).unwrap().edits, Trace::read(&packed).unwrap().edits);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_a_reason() {
        for (text, reason) in [
            (r#"{"endContent":"b","txns":[{"patches":[[1,0,"b"]]}]}"#, "edit 0 is after the end"),
            (r#"{"endContent":"bb","txns":[{"patches":[[0,0,"b"]]}]}"#, "another length"),
            (
                r#"{"endContent":"ab","txns":[{"parents":[],"patches":[[0,0,"a"]]},{"parents":[],"patches":[[0,0,"b"]]}]}"#,
                "transaction 1 is concurrent",
            ),
            (r#"{"txns":[]}"#, "endContent"),
        ] {
            let error = format!("{:#}", Trace::parse(text.as_bytes()).unwrap_err());
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_linear_history_with_parents_is_sequential() {
        let text = r#"{"endContent":"ab","txns":[{"parents":[],"agent":0,"patches":[[0,0,"a"]]},
            {"parents":[0],"agent":1,"patches":[[1,0,"b"]]}]}"#;
        assert_eq!(Trace::parse(text.as_bytes()).unwrap().edits.len(), 2);
    }
}
