#include "common/http_message.h"

#include "absl/strings/str_cat.h"

namespace quantry {
namespace {

std::string_view StatusText(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 400:
      return "Bad Request";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 421:
      return "Misdirected Request";
    case 431:
      return "Request Header Fields Too Large";
    case 503:
      return "Service Unavailable";
    default:
      return "Status";
  }
}

}  // namespace

HttpRequest ParseRequestLine(std::string_view line) {
  HttpRequest request;
  const size_t method_end = line.find(' ');
  const size_t target_end = method_end == std::string_view::npos ? std::string_view::npos
                                                                 : line.find(' ', method_end + 1);
  if (target_end == std::string_view::npos || line.substr(target_end + 1, 7) != "HTTP/1.") {
    request.error = 400;
    return request;
  }
  const std::string_view method = line.substr(0, method_end);
  request.head = method == "HEAD";
  if (method != "GET" && !request.head) request.error = 405;
  const std::string_view target = line.substr(method_end + 1, target_end - method_end - 1);
  request.path = std::string(target.substr(0, target.find('?')));
  return request;
}

std::string RenderResponse(const HttpResponse& response, bool head) {
  std::string text = absl::StrCat(
      "HTTP/1.1 ", response.status, " ", std::string(StatusText(response.status)),
      "\r\nContent-Type: ", response.content_type, "\r\nContent-Length: ", response.body.size(),
      response.status == 405 ? "\r\nAllow: GET, HEAD" : "",
      "\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n");
  for (const auto& [name, value] : response.headers) {
    absl::StrAppend(&text, name, ": ", value, "\r\n");
  }
  absl::StrAppend(&text, "\r\n", head ? "" : response.body);
  return text;
}

}  // namespace quantry
