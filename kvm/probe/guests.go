package probe

import (
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"github.com/hvpost/hvpost/kvm"
	"github.com/hvpost/hvpost/kvm/bare"
)

// Ports of the probe guests, written with out imm8, al.
const (
	portDone  = 0x80 // the guest is through
	portTrap  = 0x83 // int3 has reached its handler
	portFault = 0x86 // #UD or #GP instead
)

// Where the handlers lie.
const (
	trapHandler  = bare.Code + 0x800
	faultHandler = bare.Code + 0x900
)

// leash is the longest that one tiny guest may take: a guest of three
// instructions that needs more is stuck.
const leash = 100 * time.Millisecond

// A subject is a bare guest in long mode with handlers for #BP, #UD and #GP.
type subject struct{ *bare.Guest }

// newSubject builds one. The calling goroutine owns it until close.
func newSubject(sys *kvm.System) (*subject, error) {
	g, err := bare.New(sys, bare.Config{})
	if err != nil {
		return nil, err
	}
	s := &subject{g}
	if err := s.VCPU.LockThread(); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	if err := s.prepare(); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *subject) prepare() error {
	return errors.Join(
		s.Mem.WriteAt([]byte{0xE6, portTrap, 0xF4}, trapHandler),
		s.Mem.WriteAt([]byte{0xE6, portFault, 0xF4}, faultHandler),
		s.Handler(3, trapHandler),
		s.Handler(6, faultHandler),
		s.Handler(13, faultHandler),
	)
}

func (s *subject) close() error {
	return errors.Join(s.VCPU.UnlockThread(), s.Close())
}

// How a guest may end that does not come out at a port.
var (
	errTime      = errors.New("no end in sight")
	errEmulation = errors.New("KVM cannot emulate the instruction")
)

// run runs the guest until it writes to a port and returns which. It lasts at
// most d.
func (s *subject) run(d time.Duration) (port uint16, err error) {
	var over atomic.Bool
	timer := time.AfterFunc(d, func() {
		over.Store(true)
		s.VCPU.Kick()
	})
	defer timer.Stop()
	for {
		e, err := s.VCPU.Run()
		switch {
		case errors.Is(err, kvm.ErrKicked) && over.Load():
			return 0, fmt.Errorf("%w after %v", errTime, d)
		case errors.Is(err, kvm.ErrKicked):
			// A late kick of the run before this one.
		case err != nil:
			return 0, err
		case e.Reason == kvm.ExitIO && e.IO.Out:
			return e.IO.Port, nil
		case e.Reason == kvm.ExitInternalError && e.Internal.Suberror == kvm.InternalEmulation:
			return 0, errEmulation
		default:
			return 0, fmt.Errorf("guest ended with %v", e)
		}
	}
}

// A trial is a guest that shows whether a class of instructions works.
type trial struct {
	name  string
	linux bool // Linux does not boot without it
	port  uint16
	code  []byte
}

// done ends a trial: out portDone, al; hlt.
var done = []byte{0xE6, portDone, 0xF4}

var trials = []trial{
	{name: "int3", linux: true, port: portTrap, code: []byte{0xCC}},
	{name: "cmpxchg16b", linux: true, port: portDone, code: []byte{
		0x31, 0xC0, 0x31, 0xD2, 0x31, 0xDB, 0x31, 0xC9, // xor eax, edx, ebx, ecx
		0xF0, 0x48, 0x0F, 0xC7, 0x0C, 0x25, 0, 0, 4, 0, // lock cmpxchg16b [Data]
	}},
	// Where CPUID does not offer XSAVE, nobody misses it. CPUID as the guest
	// sees it counts: an interpreter may show the CPU's own.
	{name: "xsave", linux: true, port: portDone, code: []byte{
		0xB8, 1, 0, 0, 0, //       mov eax, 1
		0x0F, 0xA2, //             cpuid
		0x0F, 0xBA, 0xE1, 26, //   bt ecx, 26
		0x73, 39, //               jnc past the end
		0x0F, 0x20, 0xE0, //       mov rax, cr4
		0x0D, 0, 0, 4, 0, //       or eax, 1<<18 (OSXSAVE)
		0x0F, 0x22, 0xE0, //       mov cr4, rax
		0x31, 0xC9, 0x31, 0xD2, // xor ecx, ecx; xor edx, edx
		0xB8, 3, 0, 0, 0, //       mov eax, 3
		0x0F, 0x01, 0xD1, //       xsetbv
		0x0F, 0xAE, 0x24, 0x25, 0, 0, 4, 0, // xsave [Data]
		0x0F, 0xAE, 0x2C, 0x25, 0, 0, 4, 0, // xrstor [Data]
	}},
	{name: "sse", linux: true, port: portDone, code: []byte{
		0x66, 0x0F, 0xEF, 0xC0, //             pxor xmm0, xmm0
		0xF3, 0x0F, 0x7F, 0x04, 0x25, 0, 0, 4, 0, // movdqu [Data], xmm0
	}},
	{name: "popcnt", port: portDone, code: []byte{0xF3, 0x48, 0x0F, 0xB8, 0xC0}}, // popcnt rax, rax
}

// attempt runs one trial.
func (s *subject) attempt(t trial) Instruction {
	res := Instruction{Name: t.name, Linux: t.linux}
	err := s.Long(append(append([]byte(nil), t.code...), done...)...)
	var port uint16
	if err == nil {
		port, err = s.run(leash)
	}
	switch {
	case err != nil:
		res.Error = err.Error()
	case port == portFault:
		res.Error = "invalid opcode or general protection fault"
	case port != t.port:
		res.Error = fmt.Sprintf("guest came out at port %#x, not %#x", port, t.port)
	default:
		res.Works = true
	}
	return res
}

// speed returns the nanoseconds of one guest instruction. A busy host makes a
// measurement slower, never faster, so a slow one is repeated.
func (s *subject) speed(enough time.Duration) (float64, error) {
	best := math.Inf(1)
	for i := 0; i < 3 && best >= slow; i++ {
		ns, err := s.measure(enough)
		if err != nil {
			return 0, err
		}
		best = min(best, ns)
	}
	return best, nil
}

// measure runs loops of growing length until one takes at least enough, each
// eight times the one before, and returns what an instruction of the last one
// took more than the one before it: entry, exit and cold caches count not. It
// lasts about ten times enough at most.
func (s *subject) measure(enough time.Duration) (float64, error) {
	const first, most = 250, 1 << 30
	before, err := s.loop(first, enough)
	if err != nil {
		return 0, err
	}
	for n := uint32(8 * first); ; n *= 8 {
		took, err := s.loop(n, enough)
		if err != nil {
			return 0, err
		}
		if took >= enough || n > most/8 {
			insns := float64(n-n/8) * insnsPerLoop
			if took <= before {
				before = 0 // the shorter one was disturbed
			}
			return float64((took - before).Nanoseconds()) / insns, nil
		}
		before = took
	}
}

// insnsPerLoop is the length of the measured loop: dec rcx; jnz.
const insnsPerLoop = 2

// loop returns how long n rounds take.
func (s *subject) loop(n uint32, enough time.Duration) (time.Duration, error) {
	code := append([]byte{
		0xB9, byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24), // mov ecx, n
		0x48, 0xFF, 0xC9, // dec rcx
		0x75, 0xFB, //       jnz
	}, done...)
	if err := s.Long(code...); err != nil {
		return 0, err
	}
	t0 := time.Now()
	port, err := s.run(10*enough + leash)
	took := time.Since(t0)
	if err == nil && port != portDone {
		err = fmt.Errorf("guest came out at port %#x, not %#x", port, portDone)
	}
	return took, err
}
