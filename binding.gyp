# Three targets: the core as a static library that knows nothing of Node, the addon (the only
# user of napi.h), and the native test program (only with -Dbuild_tests=true, which also adds the
# native benchmarks).
# -Dsanitize=address,undefined or -Dsanitize=thread instruments all of them. -Dstrict=true makes
# warnings errors: the scripts do, an installation with whatever compiler there is does not.
{
  "variables": {
    "sanitize%": "",
    "build_tests%": "false",
    "strict%": "false",
  },
  "target_defaults": {
    # Node's own defaults already hold -fno-exceptions and -fno-rtti. Their -O3 makes g++ 12 warn of
    # overruns that can not be.
    "configurations": {"Release": {"cflags!": ["-O3"], "cflags": ["-O2"]}},
    "cflags!": ["-Wno-unused-parameter"],
    "cflags_cc!": ["-std=gnu++17", "-std=gnu++20"],
    "cflags_cc": ["-std=c++20", "-Wall", "-Wextra", "-fno-omit-frame-pointer"],
    "include_dirs": ["native"],
    "defines": ["_FILE_OFFSET_BITS=64", "_GNU_SOURCE"],
    "conditions": [
      # In "text" + string() g++ 12 sees an overlap that can not be (GCC bug 105651).
      ["strict=='true'", {"cflags_cc": ["-Werror", "-Wno-restrict"]}],
      ["sanitize!=''", {
        "cflags_cc": ["-fsanitize=<(sanitize)", "-fno-sanitize-recover=all", "-g1", "-O1"],
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
        "<!@(find native/base native/io native/store native/volume native/nbd native/netlink -name '*.cc' -not -name '*_test.cc' -not -name '*_fuzz.cc' | LC_ALL=C sort)",
      ],
    },
    {
      "target_name": "csnap",
      "dependencies": ["csnap_core"],
      "sources": ["<!@(find native/addon -name '*.cc' | LC_ALL=C sort)"],
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
          "sources": ["<!@(find native/ -name '*_test.cc' -o -path native/bench/ratio.cc -o -path 'native/testing/*.cc' -not -name '*_fuzz.cc' -not -name 'fuzz_*.cc' | LC_ALL=C sort)"],
          # doctest's REQUIRE ends a test case by an exception; the code under test has none.
          "cflags_cc!": ["-fno-exceptions"],
          "cflags_cc": ["-fexceptions"],
          "libraries": ["-lpthread"],
        },
        {
          "target_name": "native_bench",
          "type": "executable",
          "dependencies": ["csnap_core"],
          "sources": ["<!@(find native/bench -name '*.cc' -not -name '*_test.cc' | LC_ALL=C sort)"],
          # LMDB is what the index is compared with; nothing else links it.
          "libraries": ["-lpthread", "-llmdb"],
        },
      ],
    }],
  ],
}
