package cpuid

// One socket, one thread to a core, dense APIC ids: what the leaves below say
// has to agree with each other and with the APIC ids, or Linux warns
// (arch/x86/kernel/cpu/topology*.c, cacheinfo.c) and schedules badly.

// siblings returns leaf 1's count of logical processors: addressable ids on
// Intel, processors on AMD.
func (t *Template) siblings() uint32 {
	if t.vendor == amd {
		return uint32(t.vps)
	}
	return 1 << t.shift
}

// sharedByAll returns the value of a 12-bit "processors sharing, less one"
// field for something that the whole socket shares.
func (t *Template) sharedByAll() uint32 { return 1<<t.shift - 1 }

// editIntelCache makes first and second level caches private and the third
// level shared (leaf 4: EAX 25:14 sharing, 31:26 cores, each less one).
func (t *Template) editIntelCache(l *Leaf) {
	const typeMask, levelShift, levelMask = 0x1F, 5, 7
	if l.EAX&typeMask == 0 {
		*l = Leaf{Function: l.Function, Index: l.Index, Flags: l.Flags}
		return
	}
	var sharing uint32
	if l.EAX>>levelShift&levelMask >= 3 {
		sharing = t.sharedByAll()
	}
	cores := min(t.sharedByAll(), 63)
	l.EAX = l.EAX&0x3FFF | sharing<<14 | cores<<26
}

// editAMDCache does the same for leaf 0x8000001D, which has no core count.
func (t *Template) editAMDCache(l *Leaf) {
	const typeMask, levelShift, levelMask = 0x1F, 5, 7
	if l.EAX&typeMask == 0 {
		*l = Leaf{Function: l.Function, Index: l.Index, Flags: l.Flags}
		return
	}
	var sharing uint32
	if l.EAX>>levelShift&levelMask >= 3 {
		sharing = t.sharedByAll()
	}
	l.EAX = l.EAX&0x3FFF | sharing<<14
}

// addTopology adds leaf 0xB and, where KVM has a leaf as high, 0x1F with the
// same contents. They are made here, not taken over, so that they exist even
// if the host has none.
func (t *Template) addTopology() {
	const typeSMT, typeCore = 1, 2
	leaves := []Leaf{
		{Index: 0, EAX: 0, EBX: 1, ECX: 0 | typeSMT<<8},
		{Index: 1, EAX: t.shift, EBX: uint32(t.vps), ECX: 1 | typeCore<<8},
		{Index: 2, ECX: 2},
	}
	maxLeaf := Find(t.leaves, leafMax, 0).EAX
	for _, function := range []uint32{leafTopology, leafTopologyV2} {
		if maxLeaf < function {
			continue
		}
		for _, l := range leaves {
			l.Function, l.Flags = function, FlagIndexed
			t.leaves = append(t.leaves, l)
		}
	}
}

// setMaxima lowers the highest basic and extended leaf to what is left.
func (t *Template) setMaxima() {
	var basic, extended uint32
	for _, l := range t.leaves {
		switch {
		case l.Function < leafHypervisor:
			basic = max(basic, l.Function)
		case l.Function >= leafExtMax:
			extended = max(extended, l.Function)
		}
	}
	Find(t.leaves, leafMax, 0).EAX = basic
	if l := Find(t.leaves, leafExtMax, 0); l != nil {
		l.EAX = extended
	}
}
