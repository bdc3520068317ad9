#pragma once

#include <string>
#include <vector>

namespace quantry::engine {

// One line of a plot: values[i] at x = i. Values that are not finite and above
// 0 leave a gap.
struct PlotSeries {
  std::string name;
  std::string color;  // "#rrggbb"
  std::vector<double> values;
};

struct LinePlot {
  std::string title;
  std::string x_label;
  std::string y_label;
  std::vector<PlotSeries> series;
};

// A plot with a logarithmic y axis as one SVG file that needs nothing else: no
// script, no font, no style sheet. Empty when there is no value to draw. The
// same plot gives the same bytes.
std::string LinePlotSvg(const LinePlot& plot);

}  // namespace quantry::engine
