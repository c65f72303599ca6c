/// Defines an enum whose variants are single words in ids, on the command line and in reports. Printing and
/// parsing are inverse.
macro_rules! words {
    ($(#[$outer:meta])* $name:ident, $what:literal { $($(#[$inner:meta])* $variant:ident = $word:expr,)+ }) => {
        $(#[$outer])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$inner])* $variant,)+
        }

        impl $name {
            /// All variants, plainest first: the order in which failing cases are simplified.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Its word.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.word())
            }
        }

        impl std::str::FromStr for $name {
            type Err = aqlm_formats::Error;

            fn from_str(text: &str) -> aqlm_formats::Result<Self> {
                Self::ALL.iter().copied().find(|word| word.word() == text).ok_or_else(|| {
                    let known: Vec<&str> = Self::ALL.iter().map(|word| word.word()).collect();
                    aqlm_formats::Error::argument($what, &format!("one of {}", known.join(", ")), format!("`{text}`"))
                })
            }
        }
    };
}
pub(crate) use words;
