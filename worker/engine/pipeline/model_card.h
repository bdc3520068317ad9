#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace quantry::engine {

// The card of one output (an element of report.outputs): Markdown with the
// front matter model hubs read. It stands as README.md in the output's folder,
// the folder that is uploaded to a hub. The same report gives the same bytes.
std::string ModelCard(const nlohmann::ordered_json& report, const nlohmann::ordered_json& output);

// The card's file name in `folder`: "README.md", or "README.quantry.md" where a
// README.md lies that is no card of ours; it is left alone.
std::string CardName(const std::string& folder);

}  // namespace quantry::engine
