package boot

import (
	"fmt"
	"slices"

	"github.com/hvpost/hvpost/guest"
)

// A MemType is the type of a range in the memory map (ACPI, "Address Range
// Types"; multiboot and PVH use the same numbers).
type MemType uint32

const (
	RAM      MemType = 1
	Reserved MemType = 2
	ACPIData MemType = 3 // tables; the guest may reuse it after reading them
)

// An Entry is a range of the memory map that the guest is given.
type Entry struct {
	Base guest.GPA
	Size uint64 // bytes
	Type MemType
}

// End returns the address after the range.
func (e Entry) End() guest.GPA { return e.Base + guest.GPA(e.Size) }

// Fixed places in the address space.
const (
	LowRAMLimit guest.GPA = 0xC0000000 // RAM beyond goes on at HighRAMBase
	HighRAMBase guest.GPA = 1 << 32

	ACPIBase   guest.GPA = 0xE0000 // ACPI tables, RSDP first
	ACPISize             = 0x10000
	SMBIOSBase guest.GPA = 0xF0000 // where guests scan for the entry point
	SMBIOSSize           = 0x10000

	ebdaBase   guest.GPA = 0x9FC00
	legacyHole guest.GPA = 0xA0000
	highMemory guest.GPA = 0x100000 // kernels are loaded from here on
)

// MinRAM is the least memory of a machine: less than this holds no kernel
// above the first MiB.
const MinRAM = 2 << 20

// maxRAM, 32 TiB, keeps all RAM within 46 address bits with room for MMIO above
// it; KVM itself refuses slots beyond the host's own width.
const maxRAM = 1 << 45

// maxEntries is what the zero page holds (E820_MAX_ENTRIES_ZEROPAGE).
const maxEntries = 128

// Layout divides ram bytes into RAM regions and the memory map over them. RAM
// starts at 0; what exceeds LowRAMLimit goes on at HighRAMBase. The first MiB
// is wholly backed by RAM, but what lies above 0x9FC00 in it is not offered:
// the ACPI tables and SMBIOS go there. Further ranges that the guest must
// leave alone are cut out of the map; they need not be RAM.
func Layout(ram uint64, reserved ...Entry) ([]guest.Region, []Entry, error) {
	if ram < MinRAM || ram > maxRAM || ram%guest.PageSize != 0 {
		return nil, nil, fmt.Errorf("guest memory of %d bytes: must be whole pages, %d MiB to %d GiB", ram, MinRAM>>20, uint64(maxRAM)>>30)
	}
	low := min(ram, uint64(LowRAMLimit))
	regions := []guest.Region{{Base: 0, Size: low}}
	entries := []Entry{{0, low, RAM}}
	if ram > low {
		regions = append(regions, guest.Region{Base: HighRAMBase, Size: ram - low})
		entries = append(entries, Entry{HighRAMBase, ram - low, RAM})
	}
	fixed := []Entry{
		{ebdaBase, uint64(ACPIBase - ebdaBase), Reserved},
		{ACPIBase, ACPISize, ACPIData},
		{SMBIOSBase, SMBIOSSize, Reserved},
	}
	for _, r := range append(fixed, reserved...) {
		if end, ok := r.Base.Add(r.Size); !ok || r.Size == 0 || end < r.Base {
			return nil, nil, fmt.Errorf("reserved memory of %#x bytes at %v: empty or past the end of the address space", r.Size, r.Base)
		}
		entries = carve(entries, r)
	}
	slices.SortFunc(entries, func(a, b Entry) int {
		if a.Base < b.Base {
			return -1
		}
		return 1 // no two start alike
	})
	if len(entries) > maxEntries {
		return nil, nil, fmt.Errorf("memory map of %d ranges: at most %d fit into the zero page", len(entries), maxEntries)
	}
	return regions, entries, nil
}

// carve gives range r of the map to its own type.
func carve(entries []Entry, r Entry) []Entry {
	var out []Entry
	for _, e := range entries {
		if e.End() <= r.Base || e.Base >= r.End() {
			out = append(out, e)
			continue
		}
		if e.Base < r.Base {
			out = append(out, Entry{e.Base, uint64(r.Base - e.Base), e.Type})
		}
		if e.End() > r.End() {
			out = append(out, Entry{r.End(), uint64(e.End() - r.End()), e.Type})
		}
	}
	return append(out, r)
}

// usable reports whether all n bytes at a are offered as RAM.
func usable(entries []Entry, a guest.GPA, n uint64) bool {
	end, ok := a.Add(n)
	if !ok {
		return false
	}
	// Adjacent RAM entries occur only around a cut, so one entry must do.
	return slices.ContainsFunc(entries, func(e Entry) bool {
		return e.Type == RAM && a >= e.Base && end <= e.End()
	})
}

// ramBytes is the RAM that the map offers.
func ramBytes(entries []Entry) (n uint64) {
	for _, e := range entries {
		if e.Type == RAM {
			n += e.Size
		}
	}
	return n
}

// mib rounds up to MiB, for messages.
func mib(n uint64) uint64 { return (n + 1<<20 - 1) >> 20 }
