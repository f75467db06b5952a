package vmm

import (
	"fmt"
	"sort"
)

// A PortDevice serves a range of I/O ports. off counts from the start of the
// range; len(p) is 1, 2 or 4. Hardware has no errors: a register that does
// not exist reads as ones and ignores writes. Both methods run on a virtual
// processor and must not block.
type PortDevice interface {
	PortIn(off uint16, p []byte)
	PortOut(off uint16, p []byte)
}

type portRange struct {
	base, size uint16
	dev        PortDevice
}

// portMap finds the device of a port. It is built before the first VP runs
// and never changes, so lookups take no lock.
type portMap struct {
	ranges []portRange // by base
}

// add maps size ports from base to dev.
func (m *portMap) add(base, size uint16, dev PortDevice) error {
	if size == 0 || uint32(base)+uint32(size) > 1<<16 {
		return fmt.Errorf("I/O ports %#x+%d: not a range of ports", base, size)
	}
	for _, r := range m.ranges {
		if base < r.base+r.size && r.base < base+size {
			return fmt.Errorf("I/O ports %#x+%d overlap those at %#x", base, size, r.base)
		}
	}
	m.ranges = append(m.ranges, portRange{base, size, dev})
	sort.Slice(m.ranges, func(i, j int) bool { return m.ranges[i].base < m.ranges[j].base })
	return nil
}

func (m *portMap) find(port uint16) *portRange {
	i := sort.Search(len(m.ranges), func(i int) bool { return m.ranges[i].base > port }) - 1
	if i < 0 || port-m.ranges[i].base >= m.ranges[i].size {
		return nil
	}
	return &m.ranges[i]
}

// in reads len(p) bytes at port. An access that runs over the end of a
// device's range reads ones there.
func (m *portMap) in(port uint16, p []byte) {
	r := m.find(port)
	if r == nil {
		for i := range p {
			p[i] = 0xFF
		}
		return
	}
	n := min(len(p), int(r.size-(port-r.base)))
	for i := n; i < len(p); i++ {
		p[i] = 0xFF
	}
	r.dev.PortIn(port-r.base, p[:n])
}

// out writes len(p) bytes at port.
func (m *portMap) out(port uint16, p []byte) {
	if r := m.find(port); r != nil {
		n := min(len(p), int(r.size-(port-r.base)))
		r.dev.PortOut(port-r.base, p[:n])
	}
}
