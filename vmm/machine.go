package vmm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/kvm"
	"github.com/hvpost/hvpost/synic"
	"github.com/hvpost/hvpost/synic/hv"
	"github.com/hvpost/hvpost/vmbus"
	"github.com/hvpost/hvpost/vmm/chipset"
)

// A Machine is one virtual machine. It runs once: New, Run, Close.
type Machine struct {
	cfg    Config
	sys    *kvm.System
	vm     *kvm.VM
	mem    *guest.Memory
	window *guest.Memory
	vps    []*vp
	clock  *synic.TSCClock
	alarms func() // closes them

	hypervisor *synic.Hypervisor
	partition  *synic.Partition
	doorbells  *doorbells
	bus        *vmbus.Server
	interrupts atomic.Uint64

	ports   portMap
	console *chipset.Output
	com1    *chipset.UART
	com2    *chipset.UART
	pm      *chipset.PM

	stopOnce sync.Once
	stopping atomic.Bool
	stopped  chan struct{} // closed when outcome is set
	outcome  Outcome
	ran      atomic.Bool
	closed   sync.Once
}

// New builds a machine and loads it. The errors of package kvm tell a host
// without a usable KVM apart from other failures. The caller must Close the
// machine.
func New(cfg Config) (*Machine, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	m := &Machine{cfg: cfg, stopped: make(chan struct{}), alarms: func() {}}
	for _, step := range []func() error{
		m.createVM, m.createMemory, m.createVPs, m.createPartition, m.createChipset, m.createBus, m.load,
	} {
		if err := step(); err != nil {
			m.Close()
			return nil, err
		}
	}
	return m, nil
}

// Memory is the guest's RAM.
func (m *Machine) Memory() *guest.Memory { return m.mem }

// Window is the agent's shared memory, or nil.
func (m *Machine) Window() *guest.Memory { return m.window }

// Bus is the VMBus server, or nil.
func (m *Machine) Bus() *vmbus.Server { return m.bus }

// Clock is the partition's time.
func (m *Machine) Clock() *synic.TSCClock { return m.clock }

// Partition is the machine's partition: its SynIC and its connections.
func (m *Machine) Partition() *synic.Partition { return m.partition }

// Line is the second UART, or nil without a window.
func (m *Machine) Line() *chipset.UART { return m.com2 }

// PressPowerButton raises the ACPI power button event.
func (m *Machine) PressPowerButton() { m.pm.PressPowerButton() }

// Stop ends the machine from outside; Run returns with CauseStopped and the
// detail given.
func (m *Machine) Stop(detail string) {
	m.stop(Outcome{Cause: CauseStopped, Detail: detail})
}

// stop records the first outcome and makes every VP leave the guest. It may
// be called from any goroutine, VPs included.
func (m *Machine) stop(o Outcome) {
	m.stopOnce.Do(func() {
		m.outcome = o
		m.stopping.Store(true)
		close(m.stopped)
		for _, vp := range m.vps {
			vp.cpu.Kick()
		}
	})
}

// Run runs the machine until it ends or ctx does, and returns how it ended.
// The error is for failures of the host. When Run returns, no VP runs, no
// device touches guest memory, and everything the console printed was
// written.
func (m *Machine) Run(ctx context.Context) (Outcome, error) {
	if m.ran.Swap(true) {
		return Outcome{}, errors.New("machine has run before")
	}
	var wg sync.WaitGroup
	errs := make(chan error, len(m.vps))
	if m.cfg.Started != nil {
		m.cfg.Started()
	}
	for _, vp := range m.vps {
		wg.Go(func() { errs <- vp.run() })
	}
	select {
	case <-m.stopped:
	case <-ctx.Done():
		m.Stop(context.Cause(ctx).Error())
	}
	wg.Wait()
	var err error
	for range m.vps {
		err = errors.Join(err, <-errs)
	}
	m.quiesce()
	o := m.outcome
	for _, vp := range m.vps {
		o.VPs = append(o.VPs, vp.final)
	}
	o.Stats = m.Stats()
	if m.console != nil {
		lost, cerr := m.console.Close()
		m.console = nil
		o.Stats.ConsoleLost = lost
		if cerr != nil {
			err = errors.Join(err, fmt.Errorf("console output: %w", cerr))
		}
	}
	return o, err
}

// quiesce ends everything that may touch guest memory beside the VPs.
func (m *Machine) quiesce() {
	if m.bus != nil {
		m.bus.Close()

	}
	if m.doorbells != nil {
		m.doorbells.close()
	}
	if m.partition != nil {
		m.partition.Close()
	}
	m.alarms()
	m.alarms = func() {}
}

// Close frees everything. A machine that is running must have ended first.
func (m *Machine) Close() error {
	var err error
	m.closed.Do(func() {
		m.quiesce()
		if m.console != nil {
			m.console.Close()
			m.console = nil
		}
		for _, vp := range m.vps {
			err = errors.Join(err, vp.cpu.Close())
		}
		if m.vm != nil {
			err = errors.Join(err, m.vm.Close())
		}
		if m.sys != nil {
			err = errors.Join(err, m.sys.Close())
		}
		for _, mem := range []*guest.Memory{m.window, m.mem} {
			if mem != nil {
				err = errors.Join(err, mem.Close())
			}
		}
	})
	return err
}

// Interrupt raises a fixed, edge-triggered vector on a VP; it implements
// synic.Interrupter. KVM takes it from any thread, and the VP is not kicked.
func (m *Machine) Interrupt(vp hv.VPIndex, vector uint8) error {
	m.interrupts.Add(1)
	// The message address of a fixed, physical delivery (Intel SDM 3A 11.11);
	// APIC ids are VP indices here.
	// One whose LAPIC is off loses it, as on hardware.
	_, err := m.vm.SignalMSI(msiAddress|uint64(vp)<<12, uint32(vector))
	return err
}

// logf passes on what the layers below have to say.
func (m *Machine) logf(format string, args ...any) {
	m.cfg.Log.Warn(fmt.Sprintf(format, args...))
}
