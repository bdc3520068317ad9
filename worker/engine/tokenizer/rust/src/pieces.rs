//! Encodes a long text piece by piece with exactly the ids the whole text has.
//!
//! `Tokenizer::encode` keeps about 100 bytes a character while it works. For
//! the two kinds of tokenizers below the text can be cut at places which
//! provably change nothing; for all others `encode` answers `None`.

use tokenizers::models::bpe::BPE;
use tokenizers::{Model, ModelWrapper, Token, Tokenizer};

/// Ids of `text` in pieces of about `piece` bytes; `None` where no safe way to
/// cut is known.
pub fn encode(tokenizer: &Tokenizer, text: &str, piece: usize) -> Result<Option<Vec<u32>>, String> {
    if text.len() <= piece {
        return Ok(None);
    }
    if has_word_pretokenizer(tokenizer) {
        return encode_words(tokenizer, text, piece).map(Some);
    }
    match (plain_bpe(tokenizer), normalize(tokenizer, text)) {
        (Some(bpe), Some(normalized)) => encode_bpe(bpe, &normalized, piece),
        _ => Ok(None),
    }
}

fn json_of<T: serde::Serialize>(value: Option<&T>) -> serde_json::Value {
    value.map_or(serde_json::Value::Null, |v| serde_json::to_value(v).unwrap_or_default())
}

// --- Regex pre-tokenizers: cut between words --------------------------------

/// The published patterns. In each, a word ends after a visible ASCII character
/// that is followed by a line break or a space before a letter, whatever comes
/// later, and the same word ends there at the end of a text; none looks behind.
const PATTERNS: [&str; 3] = [
    // GPT-2 (inside ByteLevel), as a Split of its own.
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    // Llama 3.
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    // Qwen 2 and 3.
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

fn is_byte_level(step: &serde_json::Value, use_regex: bool) -> bool {
    step["type"] == "ByteLevel" && step["add_prefix_space"] == false && step["use_regex"] == use_regex
}

fn is_known_split(step: &serde_json::Value) -> bool {
    step["type"] == "Split"
        && step["behavior"] == "Isolated"
        && step["invert"] == false
        && step["pattern"]["Regex"].as_str().is_some_and(|p| PATTERNS.contains(&p))
}

fn has_word_pretokenizer(tokenizer: &Tokenizer) -> bool {
    let normalizer = json_of(tokenizer.get_normalizer());
    // NFC joins nothing across ASCII characters.
    let normalizer_ok = normalizer.is_null() || normalizer["type"] == "NFC";
    // No added token may reach over a cut.
    let added_ok = tokenizer
        .get_added_tokens_decoder()
        .values()
        .all(|token| !token.content.contains([' ', '\n']) && !token.lstrip && !token.rstrip);
    let pre = json_of(tokenizer.get_pre_tokenizer());
    let pre_ok = match pre["pretokenizers"].as_array() {
        Some(steps) => steps.len() == 2 && is_known_split(&steps[0]) && is_byte_level(&steps[1], false),
        None => is_byte_level(&pre, true),
    };
    normalizer_ok && added_ok && pre_ok
}

/// First safe cut at or after `from`: behind a line break between two visible
/// ASCII characters, or before a space between such a one and a letter.
fn word_cut(text: &str, from: usize) -> usize {
    let bytes = text.as_bytes();
    let safe = |i: &usize| {
        let (before, here, after) = (bytes[*i - 1], bytes[*i], bytes.get(*i + 1));
        let line = before == b'\n' && bytes[*i - 2].is_ascii_graphic() && here.is_ascii_graphic();
        let space = before.is_ascii_graphic() && here == b' ' && after.is_some_and(u8::is_ascii_alphabetic);
        line || space
    };
    (from.max(2)..bytes.len()).find(safe).unwrap_or(bytes.len())
}

fn encode_words(tokenizer: &Tokenizer, text: &str, piece: usize) -> Result<Vec<u32>, String> {
    let mut ids = Vec::new();
    let mut start = 0;
    while start < text.len() {
        let end = word_cut(text, start + piece);
        let encoding = tokenizer.encode_fast(&text[start..end], false).map_err(|e| e.to_string())?;
        ids.extend_from_slice(encoding.get_ids());
        start = end;
    }
    Ok(ids)
}

// --- BPE over the whole text (Llama 1 and 2, Mistral) ----------------------

fn plain_bpe(tokenizer: &Tokenizer) -> Option<&BPE> {
    let ModelWrapper::BPE(bpe) = tokenizer.get_model() else { return None };
    let no_affix = |affix: &Option<String>| affix.as_ref().is_none_or(|text| text.is_empty());
    let plain = tokenizer.get_pre_tokenizer().is_none()
        && bpe.dropout.is_none()
        && !bpe.ignore_merges
        && no_affix(&bpe.continuing_subword_prefix)
        && no_affix(&bpe.end_of_word_suffix);
    plain.then_some(bpe)
}

/// The text after SentencePiece's usual normalizer ("▁" in front and for every
/// space) or none; `None` for others and where added tokens split the text.
fn normalize(tokenizer: &Tokenizer, text: &str) -> Option<String> {
    let usual = serde_json::json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]});
    let normalizer = json_of(tokenizer.get_normalizer());
    let normalized = if normalizer.is_null() {
        text.to_string()
    } else if normalizer == usual {
        format!("▁{}", text.replace(' ', "▁"))
    } else {
        return None;
    };
    let added = tokenizer.get_added_tokens_decoder();
    let splits = added.values().any(|t| text.contains(&t.content) || normalized.contains(&t.content));
    (!splits).then_some(normalized)
}

/// A token beside a cut, with the text it stands for.
struct Edge<'a> {
    id: u32,
    text: &'a str,
}

/// `None` for unknown characters and bytes, whose values are not their text.
fn edge<'a>(token: &Token, piece: &'a str) -> Option<Edge<'a>> {
    let text = piece.get(token.offsets.0..token.offsets.1)?;
    (text == token.value).then_some(Edge { id: token.id, text })
}

/// Ids of two encodings, one after the other, are the encoding of the joined
/// text if and only if the two tokens at the joint encode to themselves: every
/// merge across the joint would have to happen between those two first.
fn joins(bpe: &BPE, left: &Option<Edge>, right: &Option<Edge>) -> Result<bool, String> {
    let (Some(left), Some(right)) = (left, right) else { return Ok(false) };
    let both = bpe.tokenize(&format!("{}{}", left.text, right.text)).map_err(|e| e.to_string())?;
    Ok(both.len() == 2 && both[0].id == left.id && both[1].id == right.id)
}

/// Bytes encoded beyond a piece, so that its end is where the whole text has a
/// token's end too; the joint is proven afterwards.
const LOOK_AHEAD: usize = 256;

fn char_boundary(text: &str, from: usize) -> usize {
    (from..text.len()).find(|i| text.is_char_boundary(*i)).unwrap_or(text.len())
}

fn encode_bpe(bpe: &BPE, text: &str, piece: usize) -> Result<Option<Vec<u32>>, String> {
    let mut ids = Vec::new();
    let mut before: Option<Edge> = None;
    let mut start = 0;
    while start < text.len() {
        let part = &text[start..char_boundary(text, start + piece + LOOK_AHEAD)];
        let tokens = bpe.tokenize(part).map_err(|e| e.to_string())?;
        let Some(first) = tokens.first() else { return Ok(None) };
        if start > 0 && !joins(bpe, &before, &edge(first, part))? {
            return Ok(None);
        }
        // A prefix of an encoding is the encoding of its text.
        let at_end = start + part.len() == text.len();
        let fits = |token: &&Token| at_end || token.offsets.1 <= piece;
        let mut kept = tokens.iter().take_while(fits).count().max(1);
        // Both tokens at the joint must stand for their text.
        let known = |i: usize| edge(&tokens[i], part).is_some();
        while kept < tokens.len() && !(known(kept - 1) && known(kept)) {
            kept += 1;
        }
        before = edge(&tokens[kept - 1], part);
        ids.extend(tokens[..kept].iter().map(|token| token.id));
        start += tokens[kept - 1].offsets.1;
    }
    Ok(Some(ids))
}
