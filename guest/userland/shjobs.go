package userland

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

// The interpreter runs background commands on goroutines and calls them g1,
// g2 and so on, which "wait" takes and kill(2) does not; and it has no traps
// for signals. Both are what scripts use to end a server they started, so
// they are added here: background statements are rewritten so that each knows
// its number, and traps run between commands, as POSIX has it.

const (
	ownPrefix = "__hvpost_"
	nameVar   = "__hvpost_0"
	jobVar    = "__hvpost_job" // background statements started so far
	inVar     = "__hvpost_in"  // the job a command belongs to
	jobCmd    = "__hvpost_bg"  // ties a job to the interpreter's name for it
	jobEndCmd = "__hvpost_end" // the job's last command
	jobScript = `{ ` + jobVar + `=$((` + jobVar + `+1)); { ` + inVar + `="$` + inVar + `.$` + jobVar + `"; { :; }; ` + jobEndCmd + ` $?; } & ` +
		jobCmd + ` "$` + inVar + `.$` + jobVar + `" "$!"; }`

	// jobStart bounds how long kill waits for a job to start its first
	// process. One that never does runs in the shell and cannot be signalled.
	jobStart = time.Second
)

// A job is one background statement.
type job struct {
	started chan struct{} // closed at the first process, or the end
	pids    map[int]bool
	killed  syscall.Signal // what kill sent
	ended   bool
}

// jobs are the background statements of a shell, by number and by the
// interpreter's name in its surroundings.
type jobs struct {
	mu   sync.Mutex
	byID map[string]*job // protected by mu
	name map[string]*job // protected by mu
}

func (j *jobs) get(id string) *job {
	if j.byID[id] == nil {
		if j.byID == nil {
			j.byID, j.name = map[string]*job{}, map[string]*job{}
		}
		j.byID[id] = &job{started: make(chan struct{}), pids: map[int]bool{}}
	}
	return j.byID[id]
}

// begin says that the process of a job runs.
func (j *jobs) begin(id string, pid int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	b := j.get(id)
	b.pids[pid] = true
	b.start()
}

// start says that there is something to signal. Preconditions: jobs.mu is held.
func (b *job) start() {
	select {
	case <-b.started:
	default:
		close(b.started)
	}
}

func (j *jobs) exited(id string, pid int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.get(id).pids, pid)
}

// killed returns the signal that the job got, or 0.
func (j *jobs) killed(id string) syscall.Signal {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.get(id).killed
}

// builtin runs the commands that the rewriting put in, and kill with a job.
// ok is false for others.
func (j *jobs) builtin(hc interp.HandlerContext, args []string) (err error, ok bool) {
	in := hc.Env.Get(inVar).String()
	switch args[0] {
	case jobCmd:
		j.mu.Lock()
		defer j.mu.Unlock()
		b := j.get(args[1])
		j.name[in+"|"+args[2]] = b
		return nil, true
	case jobEndCmd:
		j.mu.Lock()
		defer j.mu.Unlock()
		b := j.get(in)
		b.ended = true
		b.start()
		if n, err := strconv.Atoi(args[1]); err == nil && n != 0 {
			return interp.ExitStatus(n), true
		}
		return nil, true
	case "kill":
		return j.kill(hc, in, args)
	}
	return nil, false
}

// kill is "kill [-signal] g1...", for at least one job.
func (j *jobs) kill(hc interp.HandlerContext, in string, args []string) (error, bool) {
	c := &ctx{name: "kill", args: args[1:]}
	if len(args) < 2 || args[1] == "-l" || args[1] == "-L" {
		return nil, false
	}
	sig, err := c.signalOption()
	if err != nil {
		return nil, false
	}
	found := false
	var list []*job
	var pids []int
	j.mu.Lock()
	for _, a := range c.args {
		if b := j.name[in+"|"+strings.TrimPrefix(a, "%")]; b != nil {
			list, found = append(list, b), true
		} else if n, err := strconv.Atoi(a); err == nil {
			pids = append(pids, n)
		}
	}
	j.mu.Unlock()
	if !found {
		return nil, false
	}
	failed := false
	report := func(what any) {
		failed = true
		fmt.Fprintf(hc.Stderr, "kill: %v: No such process\n", what)
	}
	for _, b := range list {
		t := time.NewTimer(jobStart)
		select {
		case <-b.started:
		case <-t.C:
		}
		t.Stop()
		j.mu.Lock()
		if b.ended || len(b.pids) == 0 && b.killed != 0 {
			report("job")
		} else if sig != 0 {
			if sig != unix.SIGCONT && sig != unix.SIGSTOP {
				b.killed = sig
			}
			for pid := range b.pids {
				syscall.Kill(pid, sig)
			}
		}
		j.mu.Unlock()
	}
	for _, pid := range pids {
		if syscall.Kill(pid, sig) != nil {
			report(pid)
		}
	}
	if failed {
		return interp.ExitStatus(1), true
	}
	return nil, true
}

// rewrite gives each background statement under node its job, and $0 the
// shell's name, which the interpreter has only for whole files.
func rewrite(node syntax.Node) {
	var found []*syntax.Stmt
	syntax.Walk(node, func(n syntax.Node) bool {
		switch n := n.(type) {
		case *syntax.Stmt:
			if n.Background {
				found = append(found, n)
			}
		case *syntax.ParamExp:
			if n.Param != nil && n.Param.Value == "0" {
				n.Param.Value = nameVar
			}
		}
		return true
	})
	for _, st := range found {
		f, err := syntax.NewParser().Parse(strings.NewReader(jobScript), "")
		if err != nil {
			panic("userland: job script: " + err.Error())
		}
		orig := *st
		orig.Background = false
		outer := f.Stmts[0].Cmd.(*syntax.Block)
		inner := outer.Stmts[1].Cmd.(*syntax.Block)
		inner.Stmts[1].Cmd.(*syntax.Block).Stmts = []*syntax.Stmt{&orig}
		*st = syntax.Stmt{Comments: st.Comments, Position: st.Position, Cmd: outer}
	}
}

// traps are the actions on signals.
type traps struct {
	mu      sync.Mutex
	actions map[os.Signal]string // protected by mu
	ch      chan os.Signal
}

// set is the signals' part of the trap builtin. It returns the arguments of
// the rest, which the interpreter has: EXIT and ERR.
func (t *traps) set(args []string) []string {
	words := args[1:]
	if len(words) > 0 && words[0] == "--" {
		words = words[1:]
	}
	if len(words) == 0 || strings.HasPrefix(words[0], "-") && words[0] != "-" {
		return args
	}
	action, names := words[0], words[1:]
	if len(names) == 0 {
		action, names = "-", words // "trap INT" is "trap - INT"
	}
	rest := []string{"trap", action}
	for _, n := range names {
		sig, err := signalNumber(n)
		if err != nil || sig == 0 {
			if n == "0" {
				n = "EXIT"
			}
			rest = append(rest, n)
			continue
		}
		t.mu.Lock()
		if t.actions == nil {
			t.actions, t.ch = map[os.Signal]string{}, make(chan os.Signal, 64)
		}
		delete(t.actions, sig)
		switch action {
		case "-":
			signal.Reset(sig)
		case "":
			signal.Ignore(sig)
		default:
			t.actions[sig] = action
			signal.Notify(t.ch, sig)
		}
		t.mu.Unlock()
	}
	if len(rest) == 2 {
		return []string{":"}
	}
	return rest
}

// deliver takes a signal that the shell sends itself, so that its action runs
// before the next command and not whenever the kernel gets round to it. It
// reports whether there is an action.
func (t *traps) deliver(sig syscall.Signal) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.actions[sig]; !ok {
		return false
	}
	select {
	case t.ch <- sig:
	default: // as many pending signals as a process can have
	}
	return true
}

// pending returns the actions of the signals that came, or "".
func (t *traps) pending() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var todo []string
	for {
		select {
		case sig := <-t.ch:
			if a, ok := t.actions[sig]; ok {
				todo = append(todo, a)
			}
			continue
		default:
		}
		return strings.Join(todo, "\n")
	}
}

// call sees every simple command before it runs.
func (s *shellRun) call(_ context.Context, args []string) ([]string, error) {
	if args[0] == "trap" {
		return s.traps.set(args), nil
	}
	todo := s.traps.pending()
	if todo == "" {
		switch args[0] {
		case "printf":
			if len(args) > 1 && args[1] == "-v" {
				return args, nil // sets a variable, which only the interpreter can
			}
			return append([]string{ownPrefix + args[0]}, args[1:]...), nil
		case "kill", "umask", "ulimit":
			// Builtins of shells that the interpreter knows and does not have:
			// under another name they come to exec.
			return append([]string{ownPrefix + args[0]}, args[1:]...), nil
		}
		return args, nil
	}
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
	}
	return []string{"eval", todo + "\n" + strings.Join(quoted, " ")}, nil
}

// finishTraps runs what came during the last command.
func (s *shellRun) finishTraps(code int) int {
	todo := s.traps.pending()
	if todo == "" {
		return code
	}
	prog, err := s.parser.Parse(strings.NewReader(todo), "trap")
	if err != nil {
		return code
	}
	for _, st := range prog.Stmts {
		c := s.code(s.r.Run(context.Background(), st))
		if s.r.Exited() {
			return c
		}
	}
	return code
}
