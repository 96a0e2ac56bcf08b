// CRC32C (Castagnoli, reflected polynomial 0x82f63b78, initial and final value inverted; RFC 3720
// appendix B.4). Uses the SSE4.2 instruction in three interleaved streams where the CPU has it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace csnap {

// CRC32C of `length` bytes. To continue over a further piece, pass the former result as `crc`.
uint32_t crc32c(const void* data, size_t length, uint32_t crc = 0);

// The table-driven version, on any CPU; exported so that a test can compare both.
uint32_t crc32c_portable(const void* data, size_t length, uint32_t crc = 0);

}  // namespace csnap
