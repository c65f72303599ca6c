//! The column `text` of parquet files, in which the Hub keeps data sets.

use std::panic::catch_unwind;
use std::path::Path;

use bytes::Bytes;
use parquet::basic::{Compression, Type};
use parquet::column::reader::{ColumnReader, get_column_reader};
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};

use super::checked_pages::CheckedPages;
use super::page_headers::unpacked_size;
use crate::{Error, Result};

/// The column that is read.
const COLUMN: &str = "text";

/// Largest size of the unpacked pages and of the texts, for each byte of the file. Texts shrink to a third
/// or a tenth. A file that expands further is one text many times over, or made to fill the memory.
const EXPANSION: u64 = 64;

/// Bytes allowed beyond that, for files of a few texts.
const EXPANSION_ALWAYS: u64 = 1 << 20;

/// Bytes that a text takes besides its characters.
const OVERHEAD: u64 = 64;

/// Rows read at once.
const BATCH: usize = 1024;

/// The texts of all rows, in order.
///
/// # Errors
/// `Kind` for a file that the library refuses, or that expands too far; `Unsupported` for other compressions;
/// `Field` when there is no column `text` of strings, or a row has none.
pub(crate) fn texts(path: &Path, bytes: &[u8]) -> Result<Vec<String>> {
    // The library has assertions on what a file says.
    let read = catch_unwind(|| read(path, bytes));
    read.unwrap_or_else(|_| Err(refused(path, "one that the library gave up on")))
}

fn refused(path: &Path, found: impl Into<String>) -> Error {
    Error::Kind {
        path: path.into(),
        expected: "a parquet file".into(),
        found: found.into(),
    }
}

fn read(path: &Path, bytes: &[u8]) -> Result<Vec<String>> {
    let damaged = |error: ParquetError| refused(path, error.to_string());
    let wrong = |field: String, expected: &str, found: String| Error::Field {
        path: path.into(),
        field,
        expected: expected.into(),
        found,
    };
    let budget = EXPANSION_ALWAYS + EXPANSION * bytes.len() as u64;
    let reader = SerializedFileReader::new(Bytes::copy_from_slice(bytes)).map_err(damaged)?;
    let columns = reader.metadata().file_metadata().schema_descr().columns();
    let column = columns
        .iter()
        .position(|column| column.path().parts() == [COLUMN]);
    let Some(column) = column else {
        let names: Vec<String> = columns.iter().map(|column| column.path().string()).collect();
        return Err(wrong(
            COLUMN.into(),
            "a column",
            format!("columns {}", names.join(", ")),
        ));
    };
    let description = &columns[column];
    let (kind, repeated) = (description.physical_type(), description.max_rep_level());
    if kind != Type::BYTE_ARRAY || repeated != 0 || description.max_def_level() > 1 {
        return Err(wrong(
            COLUMN.into(),
            "a column of strings",
            format!("{kind} values"),
        ));
    }
    let optional = description.max_def_level() == 1;
    let mut texts = Vec::new();
    let (mut pages, mut taken) = (0, 0);
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group).map_err(damaged)?;
        let chunk = group.metadata().column(column);
        let compression = chunk.compression();
        if !matches!(
            compression,
            Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::GZIP(_)
        ) {
            return Err(Error::Unsupported {
                path: path.into(),
                field: format!("{COLUMN}, compression"),
                expected: "none, Snappy or gzip".into(),
                found: format!("{compression:?}"),
            });
        }
        let start = chunk.dictionary_page_offset().unwrap_or(chunk.data_page_offset());
        let end = start.checked_add(chunk.compressed_size());
        let range = usize::try_from(start)
            .ok()
            .zip(end.and_then(|end| usize::try_from(end).ok()));
        let chunk = range.and_then(|(start, end)| bytes.get(start..end));
        let size = chunk
            .and_then(unpacked_size)
            .ok_or_else(|| refused(path, "damaged pages in column `text`"))?;
        pages += size.min(budget + 1);
        let too_large = |what: &str| {
            let found = format!("{what} of more than {budget} bytes in a file of {}", bytes.len());
            refused(path, found)
        };
        if pages > budget {
            return Err(too_large("pages"));
        }
        let unpacked = group.get_column_page_reader(column).map_err(damaged)?;
        let checked = CheckedPages::new(unpacked, (budget / OVERHEAD) as usize);
        let ColumnReader::ByteArrayColumnReader(mut rows) =
            get_column_reader(description.clone(), Box::new(checked))
        else {
            return Err(wrong(COLUMN.into(), "a column of strings", "another".into()));
        };
        loop {
            let (mut values, mut present): (Vec<ByteArray>, Vec<i16>) = (Vec::new(), Vec::new());
            let (records, ..) = rows
                .read_records(BATCH, optional.then_some(&mut present), None, &mut values)
                .map_err(damaged)?;
            if records == 0 {
                break;
            }
            if let Some(null) = present.iter().position(|level| *level == 0) {
                let row = texts.len() + null + 1;
                return Err(wrong(format!("{COLUMN}, row {row}"), "a string", "null".into()));
            }
            for value in &values {
                let text = std::str::from_utf8(value.data()).map_err(|_| {
                    let row = texts.len() + 1;
                    wrong(format!("{COLUMN}, row {row}"), "UTF-8 text", "other bytes".into())
                })?;
                taken += text.len() as u64 + OVERHEAD;
                if taken > budget {
                    return Err(too_large("texts"));
                }
                texts.push(text.to_owned());
            }
        }
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::basic::Encoding;
    use parquet::data_type::{ByteArrayType, Int32Type};
    use parquet::file::properties::{WriterProperties, WriterVersion};
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;

    /// A file with a number and a text in each row, one group of rows for each list.
    fn file(properties: WriterProperties, groups: &[&[Option<&str>]]) -> Vec<u8> {
        let schema = "message rows { required int32 id; optional binary text (UTF8); }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties)).unwrap();
        for rows in groups {
            let mut group = writer.next_row_group().unwrap();
            let mut ids = group.next_column().unwrap().unwrap();
            let numbers: Vec<i32> = (0..rows.len() as i32).collect();
            ids.typed::<Int32Type>()
                .write_batch(&numbers, None, None)
                .unwrap();
            ids.close().unwrap();
            let mut texts = group.next_column().unwrap().unwrap();
            let values: Vec<ByteArray> = rows.iter().flatten().map(|text| ByteArray::from(*text)).collect();
            let levels: Vec<i16> = rows.iter().map(|text| i16::from(text.is_some())).collect();
            texts
                .typed::<ByteArrayType>()
                .write_batch(&values, Some(&levels), None)
                .unwrap();
            texts.close().unwrap();
            group.close().unwrap();
        }
        writer.into_inner().unwrap()
    }

    fn read(bytes: &[u8]) -> Result<Vec<String>> {
        texts(Path::new("rows.parquet"), bytes)
    }

    #[test]
    fn rows_of_all_groups_in_every_layout() {
        let long = "a ".repeat(5000);
        let groups: [&[Option<&str>]; 2] = [&[Some("once"), Some("")], &[Some("\u{e9}"), Some(&long)]];
        for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
            for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY] {
                for dictionary in [false, true] {
                    let properties = WriterProperties::builder()
                        .set_writer_version(version)
                        .set_compression(compression)
                        .set_encoding(Encoding::PLAIN)
                        .set_dictionary_enabled(dictionary);
                    let found = read(&file(properties.build(), &groups)).unwrap();
                    assert_eq!(found, ["once", "", "\u{e9}", &long]);
                }
            }
        }
    }

    #[test]
    fn a_row_without_text_is_named() {
        let bytes = file(WriterProperties::default(), &[&[Some("a")], &[Some("b"), None]]);
        assert!(matches!(read(&bytes), Err(Error::Field { field, .. }) if field == "text, row 3"));
    }

    #[test]
    fn other_columns_are_named() {
        let schema = Arc::new(parse_message_type("message rows { required int32 id; }").unwrap());
        let writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(WriterProperties::default()));
        let bytes = writer.unwrap().into_inner().unwrap();
        assert!(
            matches!(read(&bytes), Err(Error::Field { field, found, .. }) if field == "text" && found == "columns id")
        );
        let schema = Arc::new(parse_message_type("message rows { required int32 text; }").unwrap());
        let writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(WriterProperties::default()));
        let bytes = writer.unwrap().into_inner().unwrap();
        assert!(
            matches!(read(&bytes), Err(Error::Field { expected, .. }) if expected == "a column of strings")
        );
    }

    #[test]
    fn what_expands_without_bounds_is_refused() {
        // one text of 100 KB, a thousand times: 100 MB of a file of 100 KB
        let long: String = (0..100_000_u32)
            .map(|index| char::from(b'a' + (index.wrapping_mul(2_654_435_761) >> 20) as u8 % 26))
            .collect();
        let rows = vec![Some(long.as_str()); 1000];
        let bytes = file(WriterProperties::default(), &[&rows]);
        assert!(bytes.len() < 200_000);
        assert!(
            matches!(read(&bytes), Err(Error::Kind { found, .. }) if found.contains("texts of more than"))
        );
    }

    #[test]
    fn cut_files_are_refused() {
        let bytes = file(WriterProperties::default(), &[&[Some("once")]]);
        for length in 0..bytes.len() {
            assert!(read(&bytes[..length]).is_err(), "{length}");
        }
    }
}
