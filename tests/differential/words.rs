//! A line of a script, cut into words; `"…"` is one word, `bytes:N` is N bytes that don't repeat soon.

/// The words of a line.
#[derive(Debug, Clone)]
pub struct Words(Vec<String>);

impl Words {
    /// Cuts a line.
    pub fn parse(line: &str) -> Self {
        let mut words = Vec::new();
        let mut word = String::new();
        let mut quoted = false;
        for c in line.chars() {
            match c {
                '"' => {
                    quoted = !quoted;
                    word.push(c);
                }
                c if c.is_whitespace() && !quoted => {
                    if !word.is_empty() {
                        words.push(std::mem::take(&mut word));
                    }
                }
                c => word.push(c),
            }
        }
        if !word.is_empty() {
            words.push(word);
        }
        Self(words)
    }

    /// The line again.
    pub fn text(&self) -> String {
        self.0.join(" ")
    }

    /// Word `at`, or nothing.
    pub fn get(&self, at: usize) -> &str {
        self.0.get(at).map_or("", String::as_str)
    }

    /// The first one.
    pub fn first(&self) -> &str {
        self.get(0)
    }

    /// A number; 0 if there is none.
    pub fn number(&self, at: usize) -> i64 {
        let word = self.get(at);
        if word.is_empty() {
            return 0;
        }
        word.parse().unwrap_or_else(|_| panic!("{word}: a number was expected in: {}", self.text()))
    }

    /// Everything from word `at` on.
    pub fn from(&self, at: usize) -> Self {
        Self(self.0.get(at..).unwrap_or_default().to_vec())
    }

    /// All words.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Whether `word` is one of them.
    pub fn has(&self, word: &str) -> bool {
        self.iter().any(|other| other == word)
    }

    /// The bytes that word `at` stands for.
    pub fn bytes(&self, at: usize) -> Vec<u8> {
        bytes_of(self.get(at))
    }
}

/// The bytes that a word stands for.
pub fn bytes_of(word: &str) -> Vec<u8> {
    if let Some(count) = word.strip_prefix("bytes:") {
        let count: usize = count.parse().expect("bytes:N");
        return (0..count).map(|at| (at % 251) as u8).collect();
    }
    word.trim_matches('"').as_bytes().to_vec()
}

/// Bytes as a transcript shows them: in full, or their number and a checksum.
pub fn shown(bytes: &[u8]) -> String {
    if bytes.len() <= 40 {
        return format!("{:?}", String::from_utf8_lossy(bytes));
    }
    // FNV-1a.
    let sum = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{} bytes {sum:016x}", bytes.len())
}
