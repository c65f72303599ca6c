//! Checks what a parquet column's pages claim before the library decodes them: it allocates room for as many
//! values as a page says to have.

use parquet::basic::Encoding;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};

/// Bytes of a value's length, before its characters.
const LENGTH_BYTES: usize = 4;

/// The pages of a column of strings. Pages that claim more values than they can have are refused, and so are
/// encodings of values that data sets do not use: the library trusts those most.
pub(super) struct CheckedPages {
    pages: Box<dyn PageReader>,
    /// the largest number of values in a page
    most_values: usize,
    /// whether the dictionary was read
    dictionary: bool,
}

impl CheckedPages {
    pub(super) fn new(pages: Box<dyn PageReader>, most_values: usize) -> Self {
        Self {
            pages,
            most_values,
            dictionary: false,
        }
    }

    fn check(&mut self, page: &Page) -> Result<()> {
        let count = page.num_values() as usize;
        if let Page::DictionaryPage { buf, .. } = page {
            if self.dictionary || count > buf.len() / LENGTH_BYTES {
                return refuse("one dictionary, whose bytes can hold its values", "another");
            }
            self.dictionary = true;
            return Ok(());
        }
        if count > self.most_values {
            return refuse("fewer values than the file's size justifies", &count.to_string());
        }
        match page.encoding() {
            Encoding::PLAIN => Ok(()),
            Encoding::PLAIN_DICTIONARY | Encoding::RLE_DICTIONARY if self.dictionary => Ok(()),
            other => refuse(
                "encoding PLAIN, or RLE_DICTIONARY after a dictionary",
                &other.to_string(),
            ),
        }
    }
}

fn refuse(expected: &str, found: &str) -> Result<()> {
    Err(ParquetError::General(format!(
        "a page of column `text`: expected {expected}, found {found}"
    )))
}

impl PageReader for CheckedPages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.pages.get_next_page()?;
        if let Some(page) = &page {
            self.check(page)?;
        }
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.pages.skip_next_page()
    }
}

impl Iterator for CheckedPages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use bytes::Bytes;

    use super::*;

    /// Pages in memory.
    struct Pages(VecDeque<Page>);

    impl PageReader for Pages {
        fn get_next_page(&mut self) -> Result<Option<Page>> {
            Ok(self.0.pop_front())
        }

        fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
            Ok(None)
        }

        fn skip_next_page(&mut self) -> Result<()> {
            self.0.pop_front();
            Ok(())
        }
    }

    impl Iterator for Pages {
        type Item = Result<Page>;

        fn next(&mut self) -> Option<Self::Item> {
            self.0.pop_front().map(Ok)
        }
    }

    fn dictionary(num_values: u32) -> Page {
        Page::DictionaryPage {
            buf: Bytes::from_static(&[0; 12]),
            num_values,
            encoding: Encoding::PLAIN,
            is_sorted: false,
        }
    }

    fn data(num_values: u32, encoding: Encoding) -> Page {
        Page::DataPage {
            buf: Bytes::new(),
            num_values,
            encoding,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        }
    }

    fn all_read(pages: impl Into<VecDeque<Page>>) -> bool {
        CheckedPages::new(Box::new(Pages(pages.into())), 5).all(|page| page.is_ok())
    }

    #[test]
    fn pages_that_claim_too_much_are_refused() {
        let indices = Encoding::RLE_DICTIONARY;
        assert!(all_read([
            dictionary(3),
            data(5, indices),
            data(5, Encoding::PLAIN)
        ]));
        assert!(!all_read([dictionary(4)]));
        assert!(!all_read([dictionary(3), dictionary(3)]));
        assert!(!all_read([data(6, Encoding::PLAIN)]));
        assert!(!all_read([data(5, indices)]));
        assert!(!all_read([data(5, Encoding::DELTA_BYTE_ARRAY)]));
    }
}
