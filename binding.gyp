# Three targets: the core as a static library that knows nothing of Node, the addon (the only
# user of napi.h), and the native test program (only with -Dbuild_tests=true).
# -Dsanitize=address,undefined or -Dsanitize=thread instruments all of them.
{
  "variables": {
    "sanitize%": "",
    "build_tests%": "false",
  },
  "target_defaults": {
    "cflags!": ["-fno-omit-frame-pointer"],
    "cflags_cc!": ["-std=gnu++17", "-std=gnu++20", "-fno-rtti"],
    "cflags_cc": ["-std=c++20", "-fno-exceptions", "-fno-rtti", "-Wall", "-Wextra", "-Werror",
                  "-fno-omit-frame-pointer"],
    "include_dirs": ["native"],
    "defines": ["_FILE_OFFSET_BITS=64", "_GNU_SOURCE"],
    "conditions": [
      ["sanitize!=''", {
        "cflags_cc": ["-fsanitize=<(sanitize)", "-fno-sanitize-recover=all", "-g", "-O1"],
        "ldflags": ["-fsanitize=<(sanitize)"],
      }],
    ],
  },
  "targets": [
    {
      "target_name": "csnap_core",
      "type": "static_library",
      "cflags": ["-fPIC"],
      "sources": [
        "<!@(ls native/base/*.cc native/io/*.cc native/store/*.cc native/volume/*.cc native/nbd/*.cc | grep -v -e _test.cc -e _fuzz.cc)",
      ],
    },
    {
      "target_name": "csnap",
      "dependencies": ["csnap_core"],
      "sources": ["<!@(ls native/addon/*.cc)"],
      "include_dirs": ["<!(node -p \"require('node-addon-api').include_dir\")"],
      "defines": ["NAPI_VERSION=9", "NAPI_DISABLE_CPP_EXCEPTIONS"],
      "libraries": ["-lpthread"],
    },
  ],
  "conditions": [
    ["build_tests=='true'", {
      "targets": [
        {
          "target_name": "native_tests",
          "type": "executable",
          "dependencies": ["csnap_core"],
          "sources": ["<!@(ls native/testing/*.cc native/*/*_test.cc)"],
          "libraries": ["-lpthread"],
        },
      ],
    }],
  ],
}
