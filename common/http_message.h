// Requests and responses of HttpAdmin as values. Pure.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace quantry {

struct HttpResponse {
  int status = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body = {};
  std::vector<std::pair<std::string, std::string>> headers = {};  // beside the usual ones
};

struct HttpRequest {
  bool head = false;  // HEAD: everything but the body
  std::string path;   // without the query
  int error = 0;      // 400 or 405: the line is refused, path means nothing
};

// From "GET /metrics HTTP/1.1".
HttpRequest ParseRequestLine(std::string_view line);

// The whole response, ready to send. Nothing may be stored or sniffed by who
// gets it.
std::string RenderResponse(const HttpResponse& response, bool head);

}  // namespace quantry
