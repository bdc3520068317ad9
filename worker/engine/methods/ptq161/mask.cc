#include "worker/engine/methods/ptq161/mask.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "worker/engine/methods/batches.h"
#include "worker/engine/methods/ptq161/binarize.h"
#include "worker/engine/model/shared_inputs.h"

namespace quantry::engine {
namespace {

// A channel that never speaks counts as this loud (spec: ptq161.md 2.2). Sensitivities have no
// least: theirs is no unit of inputs, and a single loud column may leave all others far below any.
constexpr double kLeastStatistic = 1e-5;

double Least(Ptq161Options::Statistic statistic) {
  return statistic == Ptq161Options::Statistic::kSensitivity ? 0 : kLeastStatistic;
}

int64_t Promoted(const Ptq161Options& options, int64_t count, int64_t in_features) {
  if (options.salient_multiple > 1) {
    const int64_t step = options.salient_multiple;
    count = (count + step - 1) / step * step;
  }
  return std::min(count, in_features);
}

// Max or sum of |x|, or sum of x^2, over the tokens of a batch, fp32 [in].
at::Tensor Reduce(const at::Tensor& x, Ptq161Options::Statistic statistic) {
  const at::Tensor tokens = x.reshape({-1, x.size(-1)});
  if (statistic == Ptq161Options::Statistic::kSensitivity) return tokens.square().sum(0);
  const at::Tensor size = tokens.abs();
  return statistic == Ptq161Options::Statistic::kMax ? size.amax(0) : size.sum(0);
}

// Squared error of each column as signs less that in 4 bits, fp32 [in].
at::Tensor ErrorSaved(const at::Tensor& weight, bool centered_gain) {
  const BinaryRows rows = BinarizeRows(weight, centered_gain);
  const at::Tensor signs = rows.signs.to(at::kFloat).mul_(2).sub_(1);
  const at::Tensor binary = signs.mul_(rows.gain.unsqueeze(1)).add_(rows.mean.unsqueeze(1));
  const SalientGrid grid = FitSalientGrid(weight);
  const at::Tensor codes = SalientCodes(weight, grid).to(at::kFloat);
  const at::Tensor fine = (codes - grid.zeros.unsqueeze(1)) * grid.scales.unsqueeze(1);
  return ((binary - weight).square() - (fine - weight).square()).sum(0).cpu();
}

// What SelectSalient orders the columns of the linears with input `source` by.
at::Tensor Salience(const Block& block, const Ptq161Options& options, const BlockSurvey& survey,
                    int source) {
  const at::Tensor& statistic = survey.statistics.at(source);
  if (!options.mask || options.statistic != Ptq161Options::Statistic::kSensitivity) {
    return statistic;
  }
  at::Tensor saved = at::zeros_like(statistic);
  for (size_t i = 0; i < block.linears.size(); ++i) {
    if (InputSource(*block.architecture, static_cast<int>(i)) != source) continue;
    saved += ErrorSaved(block.linears[i].weight, options.centered_gain);
  }
  at::Tensor score = saved.clamp_min_(0).mul_(statistic);
  const double most = score.max().item<double>();
  return std::isfinite(most) && most > 0 ? score : statistic;
}

at::Tensor Combine(const std::vector<at::Tensor>& batches, Ptq161Options::Statistic statistic,
                   int64_t tokens) {
  const at::Tensor all = at::stack(batches);
  if (statistic == Ptq161Options::Statistic::kMax) return all.amax(0).cpu();
  return all.sum(0, false, at::kDouble).div_(static_cast<double>(tokens)).to(at::kFloat).cpu();
}

}  // namespace

BlockSurvey SurveyBlock(const BlockTask& task, Ptq161Options::Statistic statistic,
                        ProgressSink& progress) {
  const StreamShape stream{task.x_fp.size(0), task.x_fp.size(1)};
  const int workers = BatchWorkers(*task.block.config, stream, task.device);
  // A place of its own for each batch: nothing depends on timing.
  std::map<int, std::vector<at::Tensor>> parts;
  for (size_t i = 0; i < task.block.linears.size(); ++i) {
    parts[InputSource(*task.block.architecture, static_cast<int>(i))].resize(Batches(stream));
  }
  BlockSurvey survey;
  survey.target_fp = at::empty_like(task.x_fp);
  survey.target_q = at::empty_like(task.x_q);
  ForEachBatch(stream, workers, [&](int, const Batch& batch) {
    const auto rows = [&](const at::Tensor& x) { return x.slice(0, batch.first, batch.last); };
    const at::Tensor wanted = task.block.Forward(
        rows(task.x_fp).to(task.device), task.rope, [&](int index, const at::Tensor& x) {
          const auto place = parts.find(index);
          if (place != parts.end()) place->second[batch.index] = Reduce(x, statistic);
          return task.block.Apply(index, x);
        });
    rows(survey.target_fp).copy_(wanted);
    rows(survey.target_q).copy_(task.block.Forward(rows(task.x_q).to(task.device), task.rope));
    progress.Advance(1, "surveying the block");
  });
  for (const auto& [source, batches] : parts) {
    survey.statistics[source] = Combine(batches, statistic, stream.windows * stream.length);
  }
  return survey;
}

int64_t SalientCount(const Ptq161Options& options, int64_t in_features) {
  if (!options.mask) return 0;
  const auto share =
      static_cast<int64_t>(std::floor(options.salient_ratio * static_cast<double>(in_features)));
  const int64_t count = options.exact_top_k ? std::max<int64_t>(share, 1) : share + 1;
  return Promoted(options, count, in_features);
}

at::Tensor SelectSalient(const Ptq161Options& options, const at::Tensor& statistic) {
  if (!options.mask) return at::empty({0}, at::kInt);
  const int64_t columns = statistic.size(0);
  const at::Tensor loud = statistic.to(at::kFloat).clamp_min(Least(options.statistic));
  const auto [sorted, order] = at::sort(loud, /*stable=*/true, /*dim=*/0, /*descending=*/true);
  int64_t count = SalientCount(options, columns);
  if (!options.exact_top_k) {
    const auto share =
        static_cast<int64_t>(std::floor(options.salient_ratio * static_cast<double>(columns)));
    const int64_t tied = sorted.ge(sorted[share]).sum().item<int64_t>();
    if (tied <= std::max<int64_t>(share + 1, columns / 2)) {
      count = Promoted(options, tied, columns);
    }
  }
  return std::get<0>(order.slice(0, 0, count).sort()).to(at::kInt);
}

std::vector<at::Tensor> SelectColumns(const Block& block, const Ptq161Options& options,
                                      const BlockSurvey& survey) {
  std::vector<at::Tensor> salient;
  for (size_t i = 0; i < block.linears.size(); ++i) {
    const int source = InputSource(*block.architecture, static_cast<int>(i));
    salient.push_back(source == static_cast<int>(i)
                          ? SelectSalient(options, Salience(block, options, survey, source))
                          : salient.at(source));
  }
  return salient;
}

std::vector<at::Tensor> ColumnsOfFirstPass(const QuantizedBlock& first_pass) {
  std::vector<at::Tensor> salient;
  for (const QuantizedLinear& linear : first_pass.linears) {
    salient.push_back(linear.mixed.value().salient);
  }
  return salient;
}

}  // namespace quantry::engine
