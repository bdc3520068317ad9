#include "worker/engine/export/exporter.h"

#include <unordered_set>

#include "worker/engine/base/error.h"
#include "worker/engine/base/file.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/export/accounting.h"
#include "worker/engine/export/model_files.h"
#include "worker/engine/export/output_reader.h"
#include "worker/engine/export/packed_reader.h"

namespace quantry::engine {
namespace {

const QuantizedLinear& FindLinear(const QuantizedBlock& block, const std::string& name) {
  for (const QuantizedLinear& linear : block.linears) {
    if (linear.name == name) return linear;
  }
  throw EngineError(FailureClass::kBug, "INTERNAL",
                    StrCat("block ", block.index, " has no quantized linear ", name));
}

[[noreturn]] void Differs(const std::string& dir, const std::string& name, const std::string& how) {
  throw EngineError(FailureClass::kEnvironment, "OUTPUT_VERIFICATION_FAILED",
                    StrCat("output in ", dir, " does not hold what was computed: ", name, ": ", how,
                           "; the disk or another process changed it; run the job again"),
                    {{"output", dir}, {"tensor", name}, {"difference", how}});
}

// What a tensor outside the packed linears must be.
at::Tensor ExpectedDense(const Checkpoint& checkpoint, const PlannedTensor& tensor,
                         const QuantizedBlock& block) {
  switch (tensor.kind) {
    case PlannedTensor::Kind::kBias:
      return FindLinear(block, tensor.key).bias.to(tensor.dense.dtype);
    case PlannedTensor::Kind::kBlockDense:
      return block.dense.at(tensor.key);
    default:
      return checkpoint.View(tensor.source);
  }
}

// safetensors metadata of a shard: the layout's, for the linears in it.
ShardedWriter::Metadata MetadataOf(const Layout& layout, const std::vector<PlannedTensor>& plan) {
  return [&layout, linears = PlannedLinears(plan)](const std::vector<TensorSpec>& specs) {
    std::unordered_set<std::string> names;
    for (const TensorSpec& spec : specs) names.insert(spec.name);
    std::vector<PlannedLinear> held;
    for (const PlannedLinear& linear : linears) {
      if (names.count(layout.Specs(linear).at(0).name) != 0) held.push_back(linear);
    }
    return layout.Metadata(held);
  };
}

}  // namespace

Exporter::Exporter(const Checkpoint& checkpoint, const Layout& layout, std::string dir,
                   uint64_t max_shard_bytes)
    : Exporter(checkpoint, layout, std::move(dir), PlanTensors(checkpoint), max_shard_bytes) {}

Exporter::Exporter(const Checkpoint& checkpoint, const Layout& layout, std::string dir,
                   std::vector<PlannedTensor> plan, uint64_t max_shard_bytes)
    : checkpoint_(checkpoint),
      layout_(layout),
      dir_(std::move(dir)),
      plan_(std::move(plan)),
      writer_(dir_, std::string(layout.file_stem()), OutputSpecs(plan_, layout),
              MetadataOf(layout, plan_), max_shard_bytes) {}

void Exporter::AppendDense(const PlannedTensor& tensor, const at::Tensor& value) {
  writer_.Append(tensor.written, value.to(tensor.dense.dtype));
}

void Exporter::WriteUpTo(int block) {
  for (; next_ < plan_.size() && plan_[next_].block < 0; ++next_) {
    writer_.Append(plan_[next_].written, checkpoint_.View(plan_[next_].source));
    checkpoint_.Release(plan_[next_].source);
  }
  if (block >= 0 && (next_ == plan_.size() || plan_[next_].block != block)) {
    throw EngineError(FailureClass::kBug, "INTERNAL", StrCat("block ", block, " is out of order"));
  }
}

void Exporter::Add(const QuantizedBlock& block) {
  WriteUpTo(block.index);
  for (; next_ < plan_.size() && plan_[next_].block == block.index; ++next_) {
    const PlannedTensor& tensor = plan_[next_];
    if (tensor.kind != PlannedTensor::Kind::kLinear) {
      AppendDense(tensor, ExpectedDense(checkpoint_, tensor, block));
      continue;
    }
    const std::vector<TensorSpec> specs = layout_.Specs(tensor.Linear());
    const std::vector<at::Tensor> values = layout_.Encode(FindLinear(block, tensor.key));
    for (size_t i = 0; i < specs.size(); ++i) writer_.Append(specs[i].name, values[i]);
  }
}

OutputSummary Exporter::Finish() {
  WriteUpTo(-1);
  OutputSummary summary;
  summary.format = layout_.format();
  summary.bytes = writer_.Finish();
  summary.bits_per_weight = StoredBitsPerWeight(plan_, layout_);
  summary.theoretical_bytes = TheoreticalBytes(plan_, layout_);
  summary.compatibility = layout_.Compatibility(PlannedLinears(plan_));
  files_ = writer_.files();
  files_.push_back(WriteConfig(checkpoint_, layout_, dir_, warnings_));
  for (const auto& [name, content] : layout_.MoreFiles()) {
    WriteFileAtomically(dir_ + "/" + name, content);
    files_.push_back(name);
  }
  for (std::string& name : CopyModelFiles(checkpoint_.dir(), dir_)) files_.push_back(name);
  return summary;
}

void Exporter::Verify(const BlockReader& blocks, const std::function<void()>& progress) const {
  const OutputReader reader(dir_, std::string(layout_.file_stem()));
  const std::vector<TensorSpec> specs = OutputSpecs(plan_, layout_);
  if (reader.tensors() != specs.size()) {
    Differs(dir_, "number of tensors", StrCat(specs.size(), " wanted, ", reader.tensors(), " got"));
  }
  const auto read = [&](const std::string& name) { return reader.Read(name); };
  QuantizedBlock block;
  block.index = -1;
  for (const PlannedTensor& tensor : plan_) {
    if (tensor.block >= 0 && tensor.block != block.index) {
      block = blocks(tensor.block);
      if (progress) progress();
    }
    if (tensor.kind == PlannedTensor::Kind::kLinear) {
      const std::string difference =
          layout_.Mismatch(read, tensor.Linear(), FindLinear(block, tensor.key));
      if (!difference.empty()) Differs(dir_, tensor.written, difference);
    } else if (!SameBytes(reader.Read(tensor.written), ExpectedDense(checkpoint_, tensor, block))) {
      Differs(dir_, tensor.written, "values differ");
    }
    if (tensor.block < 0) checkpoint_.Release(tensor.source);
  }
}

}  // namespace quantry::engine
