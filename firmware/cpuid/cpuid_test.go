package cpuid

import (
	"bufio"
	"fmt"
	"math/bits"
	"os"
	"strings"
	"testing"
)

// load reads a recorded list of supported leaves.
func load(t testing.TB, name string) []Leaf {
	t.Helper()
	f, err := os.Open("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var leaves []Leaf
	for s := bufio.NewScanner(f); s.Scan(); {
		if strings.HasPrefix(s.Text(), "#") {
			continue
		}
		var l Leaf
		if _, err := fmt.Sscanf(s.Text(), "%x %x %x %x %x %x %x", &l.Function, &l.Index, &l.Flags, &l.EAX, &l.EBX, &l.ECX, &l.EDX); err != nil {
			t.Fatalf("%s: %q: %v", name, s.Text(), err)
		}
		leaves = append(leaves, l)
	}
	return leaves
}

var hosts = []string{"amd-epyc.txt", "intel-xeon.txt"}

func template(t testing.TB, host string, o Options) *Template {
	t.Helper()
	tm, err := NewTemplate(load(t, host), o)
	if err != nil {
		t.Fatal(err)
	}
	return tm
}

func must(t *testing.T, leaves []Leaf, function, index uint32) Leaf {
	t.Helper()
	l := Find(leaves, function, index)
	if l == nil {
		t.Fatalf("leaf %#x.%d is absent", function, index)
	}
	return *l
}

func bitIs(t *testing.T, what string, reg uint32, bit int, want bool) {
	t.Helper()
	if got := reg>>bit&1 == 1; got != want {
		t.Errorf("%s bit %d = %v, want %v", what, bit, got, want)
	}
}

// TestTopology reads the leaves the way Linux does (detect_extended_topology,
// parse_topology, amd_get_topology, cacheinfo) and wants one socket of n cores
// with one thread each, seen alike by each way.
func TestTopology(t *testing.T) {
	counts := []int{100, 128, 255, 256, 257, 300, 1000, MaxVPs}
	for n := 1; n <= 65; n++ {
		counts = append(counts, n)
	}
	for _, host := range hosts {
		for _, n := range counts {
			tm := template(t, host, Options{VPs: n})
			seen := map[uint32]bool{}
			for vp := range n {
				leaves := tm.VP(vp)
				id := tm.APICID(vp)
				if seen[id] {
					t.Fatalf("%s, %d VPs: APIC id %d twice", host, n, id)
				}
				seen[id] = true
				if vp > 2 && vp < n-1 && n > 65 {
					continue // the ends are telling enough for big machines
				}
				checkTopology(t, fmt.Sprintf("%s, VP %d of %d", host, vp, n), leaves, n, id)
			}
		}
	}
}

func checkTopology(t *testing.T, what string, leaves []Leaf, n int, id uint32) {
	t.Helper()
	shift := uint32(bits.Len(uint(n - 1)))
	eq := func(field string, got, want uint32) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %s = %d, want %d", what, field, got, want)
		}
	}
	l1 := must(t, leaves, 1, 0)
	eq("1.EBX initial APIC id", l1.EBX>>24, id&0xFF)
	eq("1.EDX HTT", l1.EDX>>28&1, map[bool]uint32{true: 1}[n > 1])
	functions := []uint32{0xB}
	if must(t, leaves, 0, 0).EAX >= 0x1F {
		functions = append(functions, 0x1F)
	}
	for _, f := range functions {
		smt, core, end := must(t, leaves, f, 0), must(t, leaves, f, 1), must(t, leaves, f, 2)
		eq("SMT type", smt.ECX>>8&0xFF, 1)
		eq("SMT shift", smt.EAX, 0)
		eq("SMT processors", smt.EBX, 1)
		eq("core type", core.ECX>>8&0xFF, 2)
		eq("core shift", core.EAX, shift)
		eq("core processors", core.EBX, uint32(n))
		eq("end type", end.ECX>>8&0xFF, 0)
		eq("end processors", end.EBX, 0)
		for i, l := range []Leaf{smt, core, end} {
			eq("subleaf echo", l.ECX&0xFF, uint32(i))
			eq("x2APIC id", l.EDX, id)
		}
		eq("package", id>>core.EAX, 0)
	}
	switch vendorOf(must(t, leaves, 0, 0)) {
	case intel:
		eq("1.EBX logical processors", l1.EBX>>16&0xFF, min(uint32(1)<<shift, 255))
		for i := uint32(0); ; i++ {
			l := must(t, leaves, 4, i)
			if l.EAX&0x1F == 0 {
				break
			}
			eq("4.EAX cores", l.EAX>>26, min(uint32(1)<<shift-1, 63))
			want := uint32(0)
			if l.EAX>>5&7 == 3 {
				want = 1<<shift - 1
			}
			eq(fmt.Sprintf("4.%d sharing", i), l.EAX>>14&0xFFF, want)
		}
		bitIs(t, what+" 80000001.ECX CmpLegacy", must(t, leaves, 0x80000001, 0).ECX, 1, false)
	case amd:
		eq("1.EBX logical processors", l1.EBX>>16&0xFF, min(uint32(n), 255))
		sizes := must(t, leaves, 0x80000008, 0)
		eq("80000008.ECX NC", sizes.ECX&0xFF, min(uint32(n), 256)-1)
		eq("80000008.ECX ApicIdSize", sizes.ECX>>12&0xF, shift)
		bitIs(t, what+" 80000001.ECX CmpLegacy", must(t, leaves, 0x80000001, 0).ECX, 1, n > 1)
		e := must(t, leaves, 0x8000001E, 0)
		eq("8000001E.EAX", e.EAX, id)
		eq("8000001E.EBX core", e.EBX&0xFF, id&0xFF)
		eq("8000001E.EBX threads-1", e.EBX>>8&0xFF, 0)
		eq("8000001E.ECX node and nodes-1", e.ECX, 0)
		l3 := must(t, leaves, 0x8000001D, 3)
		// cacheinfo_amd_init_llc_id: the last-level cache id drops this many bits.
		llc := uint32(bits.Len32(l3.EAX >> 14 & 0xFFF))
		eq("last level cache id", id>>llc, 0)
		for i := range uint32(3) {
			eq(fmt.Sprintf("8000001D.%d sharing", i), must(t, leaves, 0x8000001D, i).EAX>>14&0xFFF, 0)
		}
	default:
		t.Fatal("unknown vendor in test data")
	}
}

func TestFeatures(t *testing.T) {
	for _, tc := range []struct {
		host          string
		o             Options
		function      uint32
		reg           string
		bit           int
		before, after bool
	}{
		{"intel-xeon.txt", Options{}, 1, "ecx", 31, true, true},
		{"amd-epyc.txt", Options{}, 1, "ecx", 31, true, true},
		{"intel-xeon.txt", Options{}, 1, "ecx", 21, true, true}, // x2APIC as KVM has it
		{"amd-epyc.txt", Options{}, 1, "ecx", 21, true, true},
		{"amd-epyc.txt", Options{}, 1, "ecx", 24, true, true},
		{"intel-xeon.txt", Options{}, 1, "ecx", 24, true, true},
		{"intel-xeon.txt", Options{}, 1, "ecx", 3, true, false}, // MONITOR
		{"intel-xeon.txt", Options{}, 1, "ecx", 5, true, false}, // VMX
		{"intel-xeon.txt", Options{Nested: true}, 1, "ecx", 5, true, true},
		{"intel-xeon.txt", Options{}, 1, "ecx", 15, true, false}, // PDCM
		{"intel-xeon.txt", Options{PMU: true}, 1, "ecx", 15, true, true},
		{"intel-xeon.txt", Options{}, 1, "ecx", 27, true, false}, // OSXSAVE follows CR4
		{"intel-xeon.txt", Options{}, 1, "ecx", 26, true, true},  // XSAVE
		{"intel-xeon.txt", Options{}, 7, "ebx", 2, false, false},
		{"intel-xeon.txt", Options{}, 7, "ebx", 25, false, false},
		{"intel-xeon.txt", Options{}, 7, "ecx", 30, true, false}, // SGX_LC
		{"intel-xeon.txt", Options{}, 7, "ecx", 4, true, false},  // OSPKE
		{"intel-xeon.txt", Options{}, 7, "ebx", 5, true, true},   // AVX2
		{"intel-xeon.txt", Options{}, 6, "eax", 2, true, true},   // ARAT
		{"amd-epyc.txt", Options{}, 0x80000001, "ecx", 22, true, true},
		{"amd-epyc.txt", Options{}, 0x80000001, "ecx", 2, false, false},
		{"amd-epyc.txt", Options{}, 0x80000007, "edx", 8, true, true},
		{"intel-xeon.txt", Options{}, 0x80000007, "edx", 8, true, true},
	} {
		tc.o.VPs = 2
		reg := func(l Leaf) uint32 {
			return map[string]uint32{"eax": l.EAX, "ebx": l.EBX, "ecx": l.ECX, "edx": l.EDX}[tc.reg]
		}
		what := fmt.Sprintf("%s %+v: leaf %#x %s", tc.host, tc.o, tc.function, tc.reg)
		bitIs(t, what+" as supported,", reg(must(t, load(t, tc.host), tc.function, 0)), tc.bit, tc.before)
		bitIs(t, what, reg(must(t, template(t, tc.host, tc.o).VP(0), tc.function, 0)), tc.bit, tc.after)
	}
}

// TestSynthetic covers bits that no recorded host has set.
func TestSynthetic(t *testing.T) {
	all := ^uint32(0)
	base := load(t, "amd-epyc.txt")
	for i := range base {
		switch l := &base[i]; {
		case l.Function == 1:
			l.ECX, l.EDX = all, all
		case l.Function == 7 && l.Index == 0:
			l.EBX, l.ECX, l.EDX = all, all, all
		case l.Function == 6 || l.Function == 5 || l.Function == 0xA || l.Function == 0x80000007 || l.Function == 0x80000022 || l.Function == 0x8000000A:
			l.EAX, l.EBX, l.ECX, l.EDX = all, all, all, all
		case l.Function == 0x80000001:
			l.ECX, l.EDX = all, all
		}
	}
	plain, err := NewTemplate(base, Options{VPs: 1})
	if err != nil {
		t.Fatal(err)
	}
	full, err := NewTemplate(base, Options{VPs: 1, Nested: true, PMU: true})
	if err != nil {
		t.Fatal(err)
	}
	p, f := plain.VP(0), full.VP(0)
	for _, tc := range []struct {
		name      string
		got, want uint32
	}{
		{"1.ECX", must(t, p, 1, 0).ECX, all &^ (1<<3 | 1<<5 | 1<<6 | 1<<15 | 1<<27)},
		{"1.ECX nested, PMU", must(t, f, 1, 0).ECX, all &^ (1<<3 | 1<<6 | 1<<27)},
		{"1.EDX", must(t, p, 1, 0).EDX, all &^ (1<<21 | 1<<22 | 1<<28 | 1<<29)},
		{"1.EDX PMU", must(t, f, 1, 0).EDX, all &^ (1<<22 | 1<<28 | 1<<29)},
		{"6.EAX", must(t, p, 6, 0).EAX, 4},
		{"6.ECX", must(t, p, 6, 0).ECX, 0},
		{"7.EBX", must(t, p, 7, 0).EBX, all &^ (1<<2 | 1<<12 | 1<<15 | 1<<25)},
		{"7.ECX", must(t, p, 7, 0).ECX, all &^ (1<<4 | 1<<23 | 1<<30)},
		{"7.EDX", must(t, p, 7, 0).EDX, all &^ (1<<15 | 1<<18 | 1<<19)},
		{"7.EDX PMU", must(t, f, 7, 0).EDX, all &^ (1<<15 | 1<<18)},
		{"80000001.ECX", must(t, p, 0x80000001, 0).ECX, all &^ (1<<1 | 1<<2 | 1<<10 | 1<<12 | 1<<19 | 1<<23 | 1<<24 | 1<<28 | 1<<29)},
		{"80000001.ECX nested, PMU", must(t, f, 0x80000001, 0).ECX, all &^ (1<<1 | 1<<10 | 1<<12 | 1<<19 | 1<<29)},
		{"80000007.EDX", must(t, p, 0x80000007, 0).EDX, 1 << 8},
		{"80000007.EAX", must(t, p, 0x80000007, 0).EAX, 0},
		{"A.EAX PMU", must(t, f, 0xA, 0).EAX, all},
		{"8000000A.EAX nested", must(t, f, 0x8000000A, 0).EAX, all},
	} {
		if tc.got != tc.want {
			t.Errorf("%s = %#x, want %#x", tc.name, tc.got, tc.want)
		}
	}
	for _, function := range []uint32{5, 0xA, 0x8000000A, 0x80000022} {
		if l := Find(p, function, 0); l != nil {
			t.Errorf("leaf %#x was kept: %+v", function, l)
		}
	}
}

func TestLeavesLeftOut(t *testing.T) {
	for _, host := range hosts {
		hv := DefaultHyperV(HyperVOptions{VPs: 2})
		for _, l := range template(t, host, Options{VPs: 2, HyperV: &hv}).VP(0) {
			switch {
			case l.Function >= 0x40000000 && l.Function <= 0x4000000A:
				continue
			case l.Function == leafTopology || l.Function == leafTopologyV2:
				continue
			case l.Function >= 0x40000000 && l.Function < 0x80000000:
				t.Errorf("%s: leaf %#x of another hypervisor interface", host, l.Function)
			case !allowed[l.Function]:
				t.Errorf("%s: leaf %#x", host, l.Function)
			}
		}
	}
}

// TestXSAVEKept: leaf 0xD must go through unchanged, subleaf by subleaf.
func TestXSAVEKept(t *testing.T) {
	for _, host := range hosts {
		in := load(t, host)
		out := template(t, host, Options{VPs: 4}).VP(3)
		n := 0
		for _, l := range in {
			if l.Function == 0xD {
				n++
				if got := must(t, out, 0xD, l.Index); got != l {
					t.Errorf("%s: leaf 0xD.%d = %+v, want %+v", host, l.Index, got, l)
				}
			}
		}
		if n == 0 {
			t.Errorf("%s: no leaf 0xD in the test data", host)
		}
	}
}

func TestMaximaAndOrder(t *testing.T) {
	for _, host := range hosts {
		leaves := template(t, host, Options{VPs: 3}).VP(0)
		var basic, extended uint32
		for i, l := range leaves {
			if i > 0 && (leaves[i-1].Function > l.Function || leaves[i-1].Function == l.Function && leaves[i-1].Index >= l.Index) {
				t.Errorf("%s: leaf %#x.%d after %#x.%d", host, l.Function, l.Index, leaves[i-1].Function, leaves[i-1].Index)
			}
			if l.Function < 0x40000000 {
				basic = l.Function
			} else if l.Function >= 0x80000000 {
				extended = l.Function
			}
		}
		if got := must(t, leaves, 0, 0).EAX; got != basic || basic < 0xB {
			t.Errorf("%s: highest basic leaf %#x, says %#x", host, basic, got)
		}
		if got := must(t, leaves, 0x80000000, 0).EAX; got != extended {
			t.Errorf("%s: highest extended leaf %#x, says %#x", host, extended, got)
		}
		if got := must(t, leaves, 0x40000000, 0); got.EBX != 0 || got.EAX != 0x40000000 {
			t.Errorf("%s: without Hyper-V leaf 0x40000000 = %+v", host, got)
		}
	}
}

// TestVPLeavesAreApart: what is done to one processor's leaves must not show
// in another's.
func TestVPLeavesAreApart(t *testing.T) {
	tm := template(t, hosts[0], Options{VPs: 2})
	a := tm.VP(0)
	for i := range a {
		a[i].EAX = 0xDEAD
	}
	if must(t, tm.VP(1), 1, 0).EAX == 0xDEAD || must(t, tm.VP(0), 1, 0).EAX == 0xDEAD {
		t.Error("leaves are shared")
	}
}

// TestTopoExtWithoutItsLeaf: the feature bit promises leaf 0x8000001E.
func TestTopoExtWithoutItsLeaf(t *testing.T) {
	var in []Leaf
	for _, l := range load(t, "amd-epyc.txt") {
		if l.Function != leafAMDTopology {
			in = append(in, l)
		}
	}
	tm, err := NewTemplate(in, Options{VPs: 2})
	if err != nil {
		t.Fatal(err)
	}
	bitIs(t, "80000001.ECX", must(t, tm.VP(0), 0x80000001, 0).ECX, 22, false)
}

func TestTSCDeadlineByCapability(t *testing.T) {
	in := load(t, "amd-epyc.txt")
	Find(in, 1, 0).ECX &^= 1 << 24
	for _, has := range []bool{false, true} {
		tm, err := NewTemplate(in, Options{VPs: 1, TSCDeadline: has})
		if err != nil {
			t.Fatal(err)
		}
		bitIs(t, "1.ECX", must(t, tm.VP(0), 1, 0).ECX, 24, has)
	}
}

func TestBadInput(t *testing.T) {
	good := load(t, hosts[0])
	noAPIC := append([]Leaf(nil), good...)
	Find(noAPIC, 1, 0).EDX &^= 1 << 9
	for name, tc := range map[string]struct {
		leaves []Leaf
		vps    int
	}{
		"no VPs": {good, 0}, "negative": {good, -1}, "too many": {good, MaxVPs + 1},
		"empty list": {nil, 1}, "no leaf 1": {good[:1], 1}, "no APIC": {noAPIC, 1},
	} {
		if _, err := NewTemplate(tc.leaves, Options{VPs: tc.vps}); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestHostQueries(t *testing.T) {
	if !InvariantTSC(load(t, hosts[0])) || InvariantTSC(nil) {
		t.Error("InvariantTSC")
	}
	if got := PhysicalBits(load(t, hosts[0])); got != 48 {
		t.Errorf("EPYC: %d physical bits", got)
	}
	if got := PhysicalBits(load(t, hosts[1])); got != 46 {
		t.Errorf("Xeon: %d physical bits", got)
	}
	if got := PhysicalBits(nil); got != 36 {
		t.Errorf("no leaf: %d physical bits", got)
	}
}
