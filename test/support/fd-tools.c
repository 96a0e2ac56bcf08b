/*
 * A Node addon for tests of src/nbd: the two socket calls that Node lacks. Built by fd-tools.ts.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <node_api.h>
#include <sys/socket.h>

static napi_value socket_pair(napi_env env, napi_callback_info info) {
  (void)info;
  int fds[2];
  napi_value result, number;
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) {
    napi_throw_error(env, "socketpair", "socketpair failed");
    return NULL;
  }
  napi_create_array_with_length(env, 2, &result);
  for (unsigned i = 0; i < 2; i++) {
    napi_create_int32(env, fds[i], &number);
    napi_set_element(env, result, i, number);
  }
  return result;
}

static napi_value duplicate(napi_env env, napi_callback_info info) {
  size_t count = 1;
  napi_value argument, result;
  int fd = -1;
  napi_get_cb_info(env, info, &count, &argument, NULL, NULL);
  napi_get_value_int32(env, argument, &fd);
  fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
  if (fd < 0) {
    napi_throw_error(env, "dup", "dup failed");
    return NULL;
  }
  napi_create_int32(env, fd, &result);
  return result;
}

NAPI_MODULE_INIT() {
  napi_value function;
  napi_create_function(env, "socketPair", NAPI_AUTO_LENGTH, socket_pair, NULL, &function);
  napi_set_named_property(env, exports, "socketPair", function);
  napi_create_function(env, "duplicate", NAPI_AUTO_LENGTH, duplicate, NULL, &function);
  napi_set_named_property(env, exports, "duplicate", function);
  return exports;
}
