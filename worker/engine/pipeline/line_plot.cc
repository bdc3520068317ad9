#include "worker/engine/pipeline/line_plot.h"

#include <algorithm>
#include <cmath>

#include "common/markup.h"
#include "worker/engine/base/strings.h"

namespace quantry::engine {
namespace {

// Pixels. Room is left of the axis for "1.5e-05", below for numbers and label,
// above for title and legend.
constexpr double kWidth = 640;
constexpr double kHeight = 360;
constexpr double kLeft = 76;
constexpr double kRight = 620;
constexpr double kTop = 62;
constexpr double kBottom = 312;
constexpr double kLegendStep = 150;
constexpr int kMaxXTicks = 12;
constexpr double kLeastDecades = 0.3;  // a flat line still gets an axis around it

bool Drawable(double value) { return std::isfinite(value) && value > 0; }

// Pixels with one decimal: enough, and short.
std::string Px(double value) { return Printed("%.1f", value); }

std::string Text(double x, double y, const std::string& anchor, const std::string& text,
                 const std::string& more = "") {
  return StrCat("<text x=\"", Px(x), "\" y=\"", Px(y), "\" text-anchor=\"", anchor, "\"", more, ">",
                EscapeMarkup(text), "</text>\n");
}

std::string Line(double x1, double y1, double x2, double y2, const std::string& color) {
  return StrCat("<line x1=\"", Px(x1), "\" y1=\"", Px(y1), "\" x2=\"", Px(x2), "\" y2=\"", Px(y2),
                "\" stroke=\"", color, "\"/>\n");
}

// Places values in the frame.
class Axes {
 public:
  explicit Axes(const LinePlot& plot) {
    for (const PlotSeries& series : plot.series) {
      points_ = std::max(points_, series.values.size());
      for (const double value : series.values) {
        if (!Drawable(value)) continue;
        low_ = any_ ? std::min(low_, std::log10(value)) : std::log10(value);
        high_ = any_ ? std::max(high_, std::log10(value)) : std::log10(value);
        any_ = true;
      }
    }
    const double margin = std::max(0.05 * (high_ - low_), (kLeastDecades - (high_ - low_)) / 2);
    low_ -= margin;
    high_ += margin;
  }

  bool any() const { return any_; }
  size_t points() const { return points_; }
  double X(size_t index) const {
    if (points_ < 2) return (kLeft + kRight) / 2;
    return kLeft + (kRight - kLeft) * static_cast<double>(index) / static_cast<double>(points_ - 1);
  }
  double Y(double value) const {
    return kBottom - (kBottom - kTop) * (std::log10(value) - low_) / (high_ - low_);
  }

  // 1, 2 and 5 of every decade; of many decades the powers of ten alone.
  std::vector<double> Ticks() const {
    std::vector<double> ticks;
    const bool fine = high_ - low_ < 2.5;
    for (int decade = static_cast<int>(std::floor(low_)); decade <= high_; ++decade) {
      for (const double digit : {1.0, 2.0, 5.0}) {
        if (!fine && digit > 1) continue;
        const double log = decade + std::log10(digit);
        if (log >= low_ && log <= high_) ticks.push_back(digit * std::pow(10.0, decade));
      }
    }
    return ticks;
  }

 private:
  bool any_ = false;
  size_t points_ = 0;
  double low_ = 0;  // log10
  double high_ = 0;
};

std::string Frame(const LinePlot& plot, const Axes& axes) {
  std::string svg = Text(kLeft, 22, "start", plot.title, " font-size=\"15\"");
  for (const double tick : axes.Ticks()) {
    const double y = axes.Y(tick);
    svg += Line(kLeft, y, kRight, y, "#dddddd");
    svg += Text(kLeft - 8, y + 4, "end", Printed("%.2g", tick));
  }
  const size_t step = (axes.points() + kMaxXTicks - 1) / kMaxXTicks;
  for (size_t i = 0; i < axes.points(); i += step) {
    svg += Text(axes.X(i), kBottom + 18, "middle", std::to_string(i));
  }
  svg += Line(kLeft, kBottom, kRight, kBottom, "#444444");
  svg += Line(kLeft, kTop, kLeft, kBottom, "#444444");
  svg += Text((kLeft + kRight) / 2, kBottom + 38, "middle", plot.x_label);
  svg += Text(16, (kTop + kBottom) / 2, "middle", plot.y_label,
              StrCat(" transform=\"rotate(-90 16 ", Px((kTop + kBottom) / 2), ")\""));
  return svg;
}

// One path with a gap where a value is missing, and a dot for each value.
std::string Curve(const PlotSeries& series, const Axes& axes) {
  std::string path;
  std::string dots;
  bool drawing = false;
  for (size_t i = 0; i < series.values.size(); ++i) {
    if (!Drawable(series.values[i])) {
      drawing = false;
      continue;
    }
    const std::string x = Px(axes.X(i));
    const std::string y = Px(axes.Y(series.values[i]));
    path += StrCat(drawing ? "L" : "M", x, " ", y);
    dots += StrCat("<circle cx=\"", x, "\" cy=\"", y, "\" r=\"3\" fill=\"", series.color, "\"/>\n");
    drawing = true;
  }
  return StrCat("<path d=\"", path, "\" fill=\"none\" stroke=\"", series.color,
                "\" stroke-width=\"2\"/>\n", dots);
}

}  // namespace

std::string LinePlotSvg(const LinePlot& plot) {
  const Axes axes(plot);
  if (!axes.any()) return "";
  std::string svg = StrCat("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"", kWidth,
                           "\" height=\"", kHeight, "\" viewBox=\"0 0 ", kWidth, " ", kHeight,
                           "\" font-family=\"sans-serif\" font-size=\"12\">\n",
                           "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n");
  svg += Frame(plot, axes);
  double x = kLeft;
  for (const PlotSeries& series : plot.series) {
    if (std::none_of(series.values.begin(), series.values.end(), Drawable)) continue;
    svg += Curve(series, axes);
    svg += StrCat("<rect x=\"", Px(x), "\" y=\"36\" width=\"12\" height=\"12\" fill=\"",
                  series.color, "\"/>\n");
    svg += Text(x + 18, 46, "start", series.name);
    x += kLegendStep;
  }
  return svg + "</svg>\n";
}

}  // namespace quantry::engine
