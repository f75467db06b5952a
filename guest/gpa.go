package guest

import (
	"errors"
	"fmt"
)

// PageSize is the size of a guest page in bytes. Hyper-V interfaces count in
// 4 KiB pages whatever the guest maps.
const PageSize = 4096

// PageShift is log2 of PageSize.
const PageShift = 12

// ErrRange reports an access that does not lie wholly inside guest RAM.
var ErrRange = errors.New("guest address outside RAM")

// ErrAlign reports an address that is not a multiple of the size of the word
// asked for.
var ErrAlign = errors.New("guest address not aligned")

// A GPA is a guest physical address in bytes.
type GPA uint64

// Add returns a+n and whether the sum did not wrap.
func (a GPA) Add(n uint64) (GPA, bool) {
	s := uint64(a) + n
	return GPA(s), s >= n
}

// Page returns the number of the page that a lies in (the TLFS's GPFN).
func (a GPA) Page() uint64 { return uint64(a) >> PageShift }

// Offset returns the offset of a inside its page, 0 to 4095.
func (a GPA) Offset() uint32 { return uint32(a) & (PageSize - 1) }

// PageGPA returns the address of the first byte of page pfn and whether that
// address exists in 64 bits.
func PageGPA(pfn uint64) (GPA, bool) {
	return GPA(pfn << PageShift), pfn>>(64-PageShift) == 0
}

func (a GPA) String() string { return fmt.Sprintf("%#x", uint64(a)) }

// A PageRange is a run of bytes spread over pages that need not be adjacent:
// the shape of a GPADL range and of a GPA-direct range. The bytes start
// ByteOffset into the first page and go on for ByteCount.
type PageRange struct {
	ByteOffset uint32
	ByteCount  uint32
	PFNs       []uint64
}

// PagesFor returns how many pages count bytes starting at offset in a page
// cover.
func PagesFor(offset, count uint32) uint64 {
	return (uint64(offset) + uint64(count) + PageSize - 1) >> PageShift
}

// Valid reports whether the range is well formed: a non-zero count, an offset
// inside the first page, and exactly the pages that the bytes cover. It says
// nothing about whether those pages are RAM; see Memory.CheckRange.
func (r PageRange) Valid() bool {
	return r.ByteCount != 0 && r.ByteOffset < PageSize &&
		uint64(len(r.PFNs)) == PagesFor(r.ByteOffset, r.ByteCount)
}
