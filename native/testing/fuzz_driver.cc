// The main of a fuzz target where clang's libFuzzer is not to be had: runs every input of the
// corpus, then seeded mutations of them for some seconds. Built by scripts/lib/fuzz.mk; takes the
// few options of libFuzzer that scripts/fuzz uses: -seed=N -max_total_time=SECONDS
// -artifact_prefix=PREFIX FILE|DIR...
//
// I1 The input under test is in the file PREFIX"current" before the target sees it (a shared
// mapping,
//    so that no crash loses it); the file is removed after a clean run.
// I2 Equal seed and corpus give the same inputs in the same order.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "testing/rng.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t length);

namespace {

using Input = std::vector<uint8_t>;
constexpr size_t kInputBytesMax = 1 << 20;

[[noreturn]] void fail(const std::string& message) {
  std::fprintf(stderr, "fuzz driver: %s\n", message.c_str());
  std::exit(2);
}

// I1: the file that holds the input under test.
class CurrentInput {
 public:
  explicit CurrentInput(std::string path) : path_(std::move(path)) {
    fd_ = open(path_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd_ < 0 || ftruncate(fd_, kInputBytesMax) != 0) fail("cannot make " + path_);
    void* bytes = mmap(nullptr, kInputBytesMax, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
    if (bytes == MAP_FAILED) fail("cannot map " + path_);
    bytes_ = static_cast<uint8_t*>(bytes);
  }
  ~CurrentInput() {
    munmap(bytes_, kInputBytesMax);
    close(fd_);
    unlink(path_.c_str());
  }
  CurrentInput(const CurrentInput&) = delete;
  CurrentInput& operator=(const CurrentInput&) = delete;

  void run(const Input& input) {
    if (!input.empty()) std::memcpy(bytes_, input.data(), input.size());
    if (input.size() != length_ && ftruncate(fd_, static_cast<off_t>(input.size())) != 0)
      fail("cannot truncate " + path_);
    length_ = input.size();
    // A copy of exactly this size, so that AddressSanitizer sees a read behind the end.
    const Input exact(input.begin(), input.end());
    LLVMFuzzerTestOneInput(exact.data(), exact.size());
    if (length_ < kInputBytesMax && ftruncate(fd_, kInputBytesMax) != 0)
      fail("cannot grow " + path_);
    length_ = kInputBytesMax;
  }

 private:
  std::string path_;
  int fd_ = -1;
  uint8_t* bytes_ = nullptr;
  size_t length_ = kInputBytesMax;
};

Input read_input(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail("cannot read " + path.string());
  Input input((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (input.size() > kInputBytesMax) input.resize(kInputBytesMax);
  return input;
}

void read_corpus(const std::filesystem::path& path, std::vector<Input>& corpus) {
  if (!std::filesystem::is_directory(path)) {
    corpus.push_back(read_input(path));
    return;
  }
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(path)) {
    if (entry.is_regular_file()) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  for (const auto& file : files) corpus.push_back(read_input(file));
}

constexpr uint64_t kInteresting[] = {
    0,      1,      2,          0x7f,       0x80,       0xff,       0x200,      0x1000,
    0x7fff, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff, 1ull << 32, ~0ull >> 1, ~0ull};

void put_integer(Input& input, csnap::Rng& rng) {
  const size_t width = size_t{1} << rng.below(4);
  if (input.size() < width) return;
  const size_t at = rng.below(input.size() - width + 1);
  const uint64_t value = kInteresting[rng.below(std::size(kInteresting))];
  const bool big_endian = rng.coin();
  for (size_t i = 0; i < width; i++) {
    const size_t shift = 8 * (big_endian ? width - 1 - i : i);
    input[at + i] = static_cast<uint8_t>(value >> shift);
  }
}

void mutate_once(Input& input, const std::vector<Input>& corpus, csnap::Rng& rng) {
  const size_t at = input.empty() ? 0 : rng.below(input.size());
  switch (rng.below(7)) {
    case 0:
      if (!input.empty()) input[at] ^= static_cast<uint8_t>(1u << rng.below(8));
      return;
    case 1:
      if (!input.empty()) input[at] = static_cast<uint8_t>(rng.next());
      return;
    case 2:
      put_integer(input, rng);
      return;
    case 3:  // cut a piece out
      if (!input.empty()) {
        const size_t length = std::min<size_t>(rng.between(1, 64), input.size() - at);
        input.erase(input.begin() + at, input.begin() + at + length);
      }
      return;
    case 4: {  // put random bytes in
      const size_t length = rng.between(1, 64);
      Input piece(length);
      for (auto& byte : piece) byte = static_cast<uint8_t>(rng.next());
      input.insert(input.begin() + at, piece.begin(), piece.end());
      return;
    }
    case 5:  // a piece of itself, moved
      if (input.size() > 1) {
        const size_t from = rng.below(input.size());
        const size_t length = std::min(
            {rng.between(1, 256), uint64_t{input.size() - from}, uint64_t{input.size() - at}});
        std::memmove(&input[at], &input[from], length);
      }
      return;
    default: {  // the end of another input
      const Input& other = corpus[rng.below(corpus.size())];
      if (other.empty()) return;
      const size_t from = rng.below(other.size());
      input.resize(at);
      input.insert(input.end(), other.begin() + from, other.end());
    }
  }
}

uint64_t number_after(const char* argument, const char* name) {
  return std::strtoull(argument + std::strlen(name), nullptr, 10);
}

bool starts_with(const char* text, const char* prefix) {
  return std::strncmp(text, prefix, std::strlen(prefix)) == 0;
}

}  // namespace

int main(int argument_count, char** arguments) {
  uint64_t seed = 1, seconds = 0;
  std::string prefix;
  std::vector<Input> corpus;
  for (int i = 1; i < argument_count; i++) {
    const char* argument = arguments[i];
    if (starts_with(argument, "-seed="))
      seed = number_after(argument, "-seed=");
    else if (starts_with(argument, "-max_total_time="))
      seconds = number_after(argument, "-max_total_time=");
    else if (starts_with(argument, "-artifact_prefix="))
      prefix = argument + std::strlen("-artifact_prefix=");
    else if (argument[0] != '-')
      read_corpus(argument, corpus);
  }
  if (corpus.empty()) corpus.emplace_back();

  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  csnap::Rng rng(seed);
  CurrentInput current(prefix + "current");
  for (const Input& input : corpus) current.run(input);
  uint64_t runs = corpus.size();
  for (; seconds > 0 && std::chrono::steady_clock::now() < end; runs++) {
    Input input = corpus[rng.below(corpus.size())];
    const uint64_t changes = rng.between(1, 8);
    for (uint64_t i = 0; i < changes; i++) mutate_once(input, corpus, rng);
    if (input.size() > kInputBytesMax) input.resize(kInputBytesMax);
    current.run(input);
  }
  std::printf("Done %llu runs with seed %llu\n", static_cast<unsigned long long>(runs),
              static_cast<unsigned long long>(seed));
  return 0;
}
