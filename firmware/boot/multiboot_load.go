package boot

import (
	"fmt"

	"github.com/hvpost/hvpost/guest"
)

// loadMultiboot loads an ELF or a flat image and enters it as the Multiboot
// Specification 0.6.96 says in section 3.2.
func (im *Image) loadMultiboot(mem *guest.Memory, p Params) (*Loaded, error) {
	h := im.multiboot
	if h == nil {
		return nil, fmt.Errorf("%s: has no multiboot header", im.Name)
	}
	var segments []segment
	var entry uint64
	if h.kludge {
		s, err := h.segment(im.size)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", im.Name, err)
		}
		segments, entry = []segment{s}, uint64(h.entry)
	} else {
		a, err := im.elf.physicalEntry()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", im.Name, err)
		}
		segments, entry = im.elf.segments, uint64(a)
	}
	if entry >= 1<<32 {
		return nil, fmt.Errorf("%s: has its multiboot entry point %#x above 4 GiB", im.Name, entry)
	}
	kernel, err := im.loadSegments(mem, p.Map, segments)
	if err != nil {
		return nil, err
	}
	modules, err := loadModules(mem, p, kernel)
	if err != nil {
		return nil, err
	}
	info, err := multibootInfo(im.Name, p, modules)
	if err != nil {
		return nil, err
	}
	if err := store(mem, info, mbiBase); err != nil {
		return nil, fmt.Errorf("multiboot information: %w", err)
	}
	l := &Loaded{State: baseState(Protected32), Kernel: kernel}
	l.State.RIP, l.State.RAX, l.State.RBX = entry, multibootLoadMagic, uint64(mbiBase)
	if len(modules) > 0 {
		first, last := modules[0], modules[len(modules)-1]
		l.Initrd = Entry{first.Base, uint64(last.End() - first.Base), RAM}
	}
	return l, nil
}

// loadModules places each part on pages of its own, in order.
func loadModules(mem *guest.Memory, p Params, kernel Entry) ([]Entry, error) {
	if len(p.Initrd) == 0 {
		return nil, nil
	}
	pages := func(n int64) uint64 { return (uint64(n) + guest.PageSize - 1) &^ (guest.PageSize - 1) }
	size, err := initrdSize(p.Initrd)
	if err != nil {
		return nil, err
	}
	var total uint64
	for _, part := range p.Initrd {
		total += pages(part.Size)
	}
	base, ok := findHigh(p.Map, total, 1<<32, kernel)
	if !ok || base < highMemory {
		return nil, initrdTooLarge(size, p)
	}
	var modules []Entry
	for _, part := range p.Initrd {
		if err := loadPart(mem, base, part); err != nil {
			return nil, err
		}
		modules = append(modules, Entry{base, uint64(part.Size), RAM})
		base += guest.GPA(pages(part.Size))
	}
	return modules, nil
}

// multibootInfo is the multiboot information structure with everything it
// points to behind it, for mbiBase.
func multibootInfo(name string, p Params, modules []Entry) ([]byte, error) {
	const (
		flagMemory, flagCmdline, flagModules, flagMap, flagLoader = 1 << 0, 1 << 2, 1 << 3, 1 << 6, 1 << 9
		infoSize                                                  = 120
	)
	b := make([]byte, infoSize)
	put := func(data []byte) uint32 {
		for len(b)%8 != 0 {
			b = append(b, 0)
		}
		at := uint32(mbiBase) + uint32(len(b))
		b = append(b, data...)
		return at
	}
	text := func(s string) uint32 { return put(append([]byte(s), 0)) }

	flags := uint32(flagMemory | flagCmdline | flagMap | flagLoader)
	le.PutUint32(b[4:], uint32(ebdaBase>>10))
	for _, e := range p.Map {
		if e.Type == RAM && e.Base <= highMemory && e.End() > highMemory {
			le.PutUint32(b[8:], uint32((e.End()-highMemory)>>10))
		}
	}
	// By convention the command line starts with the kernel's own name.
	cmdline := name
	if p.Cmdline != "" {
		cmdline += " " + p.Cmdline
	}
	at := text(cmdline) // before b[16:] is taken: it may move b
	le.PutUint32(b[16:], at)
	if len(modules) > 0 {
		flags |= flagModules
		var list []byte
		for i, m := range modules {
			list = le.AppendUint32(list, uint32(m.Base))
			list = le.AppendUint32(list, uint32(m.End()))
			list = le.AppendUint32(list, text(p.Initrd[i].Name))
			list = le.AppendUint32(list, 0)
		}
		le.PutUint32(b[20:], uint32(len(modules)))
		at = put(list)
		le.PutUint32(b[24:], at)
	}
	var entries []byte
	for _, e := range p.Map {
		entries = le.AppendUint32(entries, 20) // size of the rest
		entries = le.AppendUint64(entries, uint64(e.Base))
		entries = le.AppendUint64(entries, e.Size)
		entries = le.AppendUint32(entries, uint32(e.Type))
	}
	le.PutUint32(b[44:], uint32(len(entries)))
	at = put(entries)
	le.PutUint32(b[48:], at)
	at = text("hvpost")
	le.PutUint32(b[64:], at)
	le.PutUint32(b[0:], flags)
	if len(b) > mbiSize {
		return nil, fmt.Errorf("multiboot information of %d bytes: command line and module names may take %d at most", len(b), mbiSize)
	}
	return b, nil
}
