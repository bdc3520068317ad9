#pragma once

namespace quantry::engine {

// Sub-commands of quantry-engine which look at a checkpoint; argv[0] is the
// sub-command. Each returns the exit status: 0, or 2 for wrong usage (said on
// stderr); EngineErrors pass through to main.

// logits --model DIR --tokens FILE --output FILE [--device D] [--threads N]
//        [--packed-product auto|tiles]
// fp32 logits [windows, length, vocabulary] of a JSON array of token-id
// arrays, as a safetensors file with one tensor "logits".
int RunLogits(int argc, char** argv);

// eval --model DIR --text FILE [--format text|tokens] [--length 256]
//      [--windows 0] [--device D] [--threads N] [--packed-product auto|tiles]
// Perplexity of a dense checkpoint or a quantry container as one JSON object on
// stdout. Weights of PTQ1.61 are never unpacked as a whole on the way.
int RunEval(int argc, char** argv);

// inspect --model DIR: architecture, shapes and parameters as JSON on stdout.
int RunInspect(int argc, char** argv);

}  // namespace quantry::engine
