// Workspace: one allocation of the caller's, cut into the arrays that a kernel wants.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastshape {

// Cuts one allocation into aligned arrays; the first pass, with a null pointer, only counts.
class WorkspaceCutter {
 public:
  explicit WorkspaceCutter(void* begin) : begin_(static_cast<unsigned char*>(begin)) {}
  template <class T>
  T* take(int64_t count) {
    unsigned char* const here = begin_ == nullptr ? nullptr : begin_ + bytes_;
    bytes_ += (static_cast<size_t>(count) * sizeof(T) + 255) / 256 * 256;
    return reinterpret_cast<T*>(here);
  }
  size_t bytes() const { return bytes_; }

 private:
  unsigned char* begin_;
  size_t bytes_ = 0;
};

}  // namespace fastshape
