#include "addon/notify_socket.h"

#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "io/unique_fd.h"

namespace csnap::addon {
namespace {

// `path` as in $NOTIFY_SOCKET ('@': abstract). With a descriptor unless `attached` is negative.
bool send_notification(std::string path, const std::string& text, int attached) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() > sizeof address.sun_path) return false;
  if (path[0] == '@') path[0] = '\0';  // abstract
  memcpy(address.sun_path, path.data(), path.size());
  const UniqueFd fd(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!fd) return false;
  std::string bytes = text;
  iovec piece = {bytes.data(), bytes.size()};
  msghdr message = {};
  message.msg_name = &address;
  message.msg_namelen = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size());
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof attached)] = {};
  if (attached >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof attached);
    memcpy(CMSG_DATA(header), &attached, sizeof attached);
  }
  return sendmsg(fd.get(), &message, MSG_NOSIGNAL) == static_cast<ssize_t>(text.size());
}

Napi::Value wrong_arguments(Napi::Env env, const char* wanted) {
  Napi::TypeError::New(env, wanted).ThrowAsJavaScriptException();
  return env.Undefined();
}

}  // namespace

Napi::Value notify_call(const Napi::CallbackInfo& call) {
  if (!call[0].IsString() || !call[1].IsString())
    return wrong_arguments(call.Env(), "a path and a text are expected");
  return Napi::Boolean::New(call.Env(),
                            send_notification(call[0].As<Napi::String>().Utf8Value(),
                                              call[1].As<Napi::String>().Utf8Value(), -1));
}

Napi::Value store_descriptor_call(const Napi::CallbackInfo& call) {
  if (!call[0].IsString() || !call[1].IsString() || !call[2].IsNumber())
    return wrong_arguments(call.Env(), "a path, a name and a descriptor are expected");
  const std::string name = call[1].As<Napi::String>().Utf8Value();
  const int fd = call[2].As<Napi::Number>().Int32Value();
  // A line break would begin another assignment.
  if (fd < 0 || name.find_first_of("\n:") != std::string::npos)
    return Napi::Boolean::New(call.Env(), false);
  return Napi::Boolean::New(call.Env(), send_notification(call[0].As<Napi::String>().Utf8Value(),
                                                          "FDSTORE=1\nFDNAME=" + name, fd));
}

}  // namespace csnap::addon
