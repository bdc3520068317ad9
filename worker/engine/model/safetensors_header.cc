#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "worker/engine/base/checked.h"
#include "worker/engine/base/error.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/model/safetensors.h"

namespace quantry::engine {
namespace {

using nlohmann::json;

struct DtypeRow {
  std::string_view name;
  at::ScalarType type;
};

// Every dtype the engine reads or writes; a name absent here is refused.
constexpr DtypeRow kDtypes[] = {
    {"F64", at::kDouble},
    {"F32", at::kFloat},
    {"F16", at::kHalf},
    {"BF16", at::kBFloat16},
    {"F8_E4M3", at::kFloat8_e4m3fn},
    {"F8_E5M2", at::kFloat8_e5m2},
    {"I64", at::kLong},
    {"I32", at::kInt},
    {"I16", at::kShort},
    {"I8", at::kChar},
    {"U8", at::kByte},
    {"BOOL", at::kBool},
};

std::optional<at::ScalarType> DtypeByName(std::string_view name) {
  for (const DtypeRow& row : kDtypes) {
    if (row.name == name) return row.type;
  }
  return std::nullopt;
}

// Builds the header from JSON events, so that duplicate keys are seen and
// nothing deeper or larger than the limits is ever held.
//   {"__metadata__": {text: text}, name: {"dtype", "shape", "data_offsets"}}
class HeaderBuilder : public json::json_sax_t {
 public:
  HeaderBuilder(const SafetensorsLimits& limits, uint64_t data_begin)
      : limits_(limits), data_begin_(data_begin) {
    header.data_begin = data_begin;
  }

  SafetensorsHeader header;
  std::string error;

  bool start_object(std::size_t) override {
    if (++depth_ > limits_.json_depth) return TooDeep();
    if (depth_ == 1) return true;
    if (depth_ > 2) return Fail(StrCat("unexpected object in ", Where()));
    if (in_metadata_) return true;
    current_ = TensorInfo();
    current_.name = key_;
    has_dtype_ = has_shape_ = has_offsets_ = false;
    return true;
  }

  bool end_object() override {
    --depth_;
    if (depth_ == 0) return true;
    if (in_metadata_) {
      in_metadata_ = false;
      return true;
    }
    return FinishTensor();
  }

  bool start_array(std::size_t) override {
    if (++depth_ > limits_.json_depth) return TooDeep();
    const bool known =
        depth_ == 3 && !in_metadata_ && (field_ == "shape" || field_ == "data_offsets");
    if (!known) return Fail(StrCat("unexpected array in ", Where()));
    numbers_.clear();
    return true;
  }

  bool end_array() override {
    --depth_;
    if (field_ == "shape") {
      has_shape_ = true;
      for (const uint64_t n : numbers_) current_.shape.push_back(static_cast<int64_t>(n));
      return true;
    }
    has_offsets_ = true;
    if (numbers_.size() != 2) {
      return Fail(
          StrCat("data_offsets of ", Where(), " have ", numbers_.size(), " numbers, 2 are wanted"));
    }
    return PlaceTensor();
  }

  bool key(string_t& key) override {
    if (key.size() > limits_.name_bytes) {
      return Fail(StrCat("a name of ", key.size(), " bytes, at most ", limits_.name_bytes,
                         " are allowed: ", Printable(key, 60)));
    }
    if (depth_ == 1) return TopLevelKey(key);
    field_ = key;
    const bool known = in_metadata_ || key == "dtype" || key == "shape" || key == "data_offsets";
    if (!known) return Fail(StrCat("unknown field '", Printable(key), "' in ", Where()));
    const bool again = (key == "dtype" && has_dtype_) || (key == "shape" && has_shape_) ||
                       (key == "data_offsets" && has_offsets_);
    if (!in_metadata_ && again) {
      return Fail(StrCat("field '", key, "' appears twice in ", Where()));
    }
    return true;
  }

  bool string(string_t& value) override {
    if (depth_ == 2 && in_metadata_) {
      if (!header.metadata.emplace(field_, value).second) {
        return Fail(StrCat("metadata key '", Printable(field_), "' appears twice"));
      }
      return true;
    }
    if (depth_ != 2 || field_ != "dtype") return Fail(StrCat("unexpected text in ", Where()));
    const std::optional<at::ScalarType> dtype = DtypeByName(value);
    if (!dtype) {
      return Fail(
          StrCat("dtype '", Printable(value), "' of ", Where(), " is not one of ", KnownDtypes()));
    }
    current_.dtype = *dtype;
    has_dtype_ = true;
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    const bool wanted = depth_ == 3;
    if (!wanted) return Fail(StrCat("unexpected number in ", Where()));
    if (field_ == "shape" && numbers_.size() >= limits_.rank) {
      return Fail(StrCat(Where(), " has more than ", limits_.rank, " dimensions"));
    }
    if (numbers_.size() >= std::max<uint64_t>(limits_.rank, 2)) {
      return Fail(StrCat("too many numbers in ", Where()));
    }
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return Fail(StrCat("number ", value, " in ", Where(), " is above 2^63 - 1"));
    }
    numbers_.push_back(value);
    return true;
  }

  bool number_integer(number_integer_t value) override {
    return Fail(StrCat("negative number ", value, " in ", Where()));
  }
  bool number_float(number_float_t, const string_t& text) override {
    return Fail(StrCat("number ", Printable(text, 40), " in ", Where(), " is not an integer"));
  }
  bool null() override { return Fail(StrCat("unexpected null in ", Where())); }
  bool boolean(bool) override { return Fail(StrCat("unexpected boolean in ", Where())); }
  bool binary(json::binary_t&) override { return Fail("unexpected binary value"); }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    return Fail(StrCat("it is not JSON near byte ", position + 8));
  }

 private:
  bool Fail(const std::string& message) {
    if (error.empty()) error = message;
    return false;
  }
  bool TooDeep() { return Fail(StrCat("JSON deeper than ", limits_.json_depth, " levels")); }
  std::string Where() const {
    if (in_metadata_) return "__metadata__";
    return key_.empty() ? "the top level" : StrCat("tensor '", Printable(key_), "'");
  }
  static std::string KnownDtypes() {
    std::vector<std::string_view> names;
    for (const DtypeRow& row : kDtypes) names.push_back(row.name);
    return Join(names, names.size());
  }

  bool TopLevelKey(const std::string& key) {
    key_ = key;
    if (key == "__metadata__") {
      if (seen_metadata_) return Fail("__metadata__ appears twice");
      seen_metadata_ = in_metadata_ = true;
      return true;
    }
    if (header.tensors.size() >= limits_.tensors) {
      return Fail(StrCat("more than ", limits_.tensors, " tensors"));
    }
    if (!names_.insert(key).second) return Fail(StrCat(Where(), " appears twice"));
    return true;
  }

  bool PlaceTensor() {
    const auto begin = CheckedAdd(data_begin_, numbers_[0]);
    const auto end = CheckedAdd(data_begin_, numbers_[1]);
    if (!begin || !end || *end < *begin) {
      return Fail(StrCat("data_offsets [", numbers_[0], ", ", numbers_[1], "] of ", Where(),
                         " are no range"));
    }
    current_.begin = *begin;
    current_.end = *end;
    return true;
  }

  bool FinishTensor() {
    if (!has_dtype_ || !has_shape_ || !has_offsets_) {
      return Fail(StrCat(Where(), " lacks dtype, shape or data_offsets"));
    }
    uint64_t bytes = c10::elementSize(current_.dtype);
    for (const int64_t n : current_.shape) {
      const auto product = CheckedMultiply(bytes, static_cast<uint64_t>(n));
      if (!product || *product > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        return Fail(
            StrCat("shape [", Join(current_.shape), "] of ", Where(), " overflows 64 bits"));
      }
      bytes = *product;
    }
    if (bytes != current_.bytes()) {
      return Fail(StrCat(Where(), " of shape [", Join(current_.shape), "] and dtype ",
                         SafetensorsDtypeName(current_.dtype), " wants ", bytes,
                         " bytes, its data_offsets span ", current_.bytes()));
    }
    header.tensors.push_back(std::move(current_));
    return true;
  }

  const SafetensorsLimits limits_;
  const uint64_t data_begin_;
  int depth_ = 0;
  bool in_metadata_ = false;
  bool seen_metadata_ = false;
  bool has_dtype_ = false;
  bool has_shape_ = false;
  bool has_offsets_ = false;
  std::string key_;
  std::string field_;
  std::vector<uint64_t> numbers_;
  TensorInfo current_;
  std::set<std::string> names_;
};

EngineError Refuse(std::string_view path, const std::string& what) {
  return UserError("INVALID_CHECKPOINT",
                   StrCat(path, " is not a sound safetensors file: ", what,
                          ". Download or convert the checkpoint again"),
                   {{"path", std::string(path)}, {"problem", what}});
}

uint64_t LittleEndian64(std::string_view bytes) {
  uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = value << 8 | static_cast<unsigned char>(bytes[i]);
  return value;
}

// Data must cover the rest of the file, each byte once.
void CheckCoverage(std::vector<TensorInfo>& tensors, uint64_t data_begin, uint64_t file_size,
                   std::string_view path) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  uint64_t expected = data_begin;
  for (const TensorInfo& tensor : tensors) {
    const std::string name = Printable(tensor.name);
    if (tensor.end > file_size) {
      throw Refuse(path, StrCat("tensor '", name, "' ends at byte ", tensor.end, ", the file has ",
                                file_size, " (it is cut short)"));
    }
    if (tensor.begin < expected) {
      throw Refuse(path, StrCat("the data of tensor '", name, "' overlaps the one before it"));
    }
    if (tensor.begin > expected) {
      throw Refuse(path, StrCat(tensor.begin - expected, " bytes before tensor '", name,
                                "' belong to no tensor"));
    }
    expected = tensor.end;
  }
  if (expected != file_size) {
    throw Refuse(path, StrCat(file_size - expected, " bytes at the end belong to no tensor"));
  }
}

}  // namespace

int64_t TensorInfo::numel() const {
  int64_t n = 1;
  for (const int64_t size : shape) n *= size;
  return n;
}

std::string_view SafetensorsDtypeName(at::ScalarType dtype) {
  for (const DtypeRow& row : kDtypes) {
    if (row.type == dtype) return row.name;
  }
  return {};
}

SafetensorsHeader ParseSafetensorsHeader(std::string_view front, uint64_t file_size,
                                         std::string_view path, const SafetensorsLimits& limits) {
  if (file_size < 8 || front.size() < 8) {
    throw Refuse(path, StrCat("it has ", file_size, " bytes, at least 8 are wanted"));
  }
  const uint64_t length = LittleEndian64(front);
  if (length > limits.header_bytes) {
    throw Refuse(path, StrCat("its header says it is ", length, " bytes long, at most ",
                              limits.header_bytes, " are read"));
  }
  if (length > file_size - 8 || length > front.size() - 8) {
    throw Refuse(path, StrCat("its header wants ", length, " bytes, ", file_size - 8,
                              " follow (it is cut short)"));
  }
  const std::string_view text = front.substr(8, length);
  if (text.empty() || text.front() != '{') throw Refuse(path, "its header is no JSON object");
  HeaderBuilder builder(limits, 8 + length);
  const bool parsed = json::sax_parse(text.begin(), text.end(), &builder);
  if (!parsed || !builder.error.empty()) throw Refuse(path, builder.error);
  CheckCoverage(builder.header.tensors, builder.header.data_begin, file_size, path);
  return std::move(builder.header);
}

}  // namespace quantry::engine
