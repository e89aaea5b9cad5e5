package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// servers are the measured processes; they end with the run.
type servers struct {
	root, scratch string
	running       []*exec.Cmd
}

func (s *servers) stop() {
	for _, command := range s.running {
		_ = command.Process.Kill()
		_ = command.Wait()
	}
}

// start runs a program with its log in the scratch directory.
func (s *servers) start(name string, command *exec.Cmd) error {
	log, err := os.Create(filepath.Join(s.scratch, name+".log"))
	if err != nil {
		return err
	}
	command.Stderr = log
	if err := command.Start(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	s.running = append(s.running, command)
	return nil
}

// zookeeper starts ZooKeeper of the newest supported line, and returns its address.
func (s *servers) zookeeper() (string, error) {
	jars := filepath.Join(s.root, ".cache", "zookeeper", "3.9")
	if _, err := os.Stat(jars); err != nil {
		return "", fmt.Errorf("no %s: run tests/setup.sh zookeeper", jars)
	}
	address, err := freeAddress()
	if err != nil {
		return "", err
	}
	_, port, _ := net.SplitHostPort(address)
	file := filepath.Join(s.scratch, "zoo.cfg")
	settings := fmt.Sprintf("dataDir=%s/zookeeper\nclientPort=%s\nclientPortAddress=127.0.0.1\ntickTime=2000\n"+
		"maxClientCnxns=0\nadmin.enableServer=false\n", s.scratch, port)
	if err := os.WriteFile(file, []byte(settings), 0o600); err != nil {
		return "", err
	}
	command := exec.Command("java", "-Xmx512m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", jars+"/*",
		"org.apache.zookeeper.server.quorum.QuorumPeerMain", file)
	if err := s.start("zookeeper", command); err != nil {
		return "", err
	}
	return address, await(address)
}

// rollcall starts Rollcall in front of ZooKeeper, and returns its address.
func (s *servers) rollcall() (string, error) {
	hosts, err := s.zookeeper()
	if err != nil {
		return "", err
	}
	program := os.Getenv("ROLLCALL_SERVER_BIN")
	if program == "" {
		program = filepath.Join(s.root, "target", "release", "rollcall-server")
	}
	command := exec.Command(program, "--zookeeper", hosts, "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0")
	output, err := command.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := s.start("rollcall", command); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(output).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("rollcall-server does not listen: %w", err)
	}
	address, _, _ := strings.Cut(strings.TrimPrefix(line, "listening grpc="), " ")
	return address, nil
}

// etcd starts etcd with its defaults, and returns its address.
func (s *servers) etcd() (string, error) {
	program := filepath.Join(s.root, ".cache", "bin", "etcd")
	if _, err := os.Stat(program); err != nil {
		return "", fmt.Errorf("no %s: run tests/setup.sh etcd", program)
	}
	address, err := freeAddress()
	if err != nil {
		return "", err
	}
	peer, err := freeAddress()
	if err != nil {
		return "", err
	}
	command := exec.Command(program, "--data-dir", filepath.Join(s.scratch, "etcd"), "--log-level", "error",
		"--listen-client-urls", "http://"+address, "--advertise-client-urls", "http://"+address,
		"--listen-peer-urls", "http://"+peer)
	if err := s.start("etcd", command); err != nil {
		return "", err
	}
	return address, await(address)
}

func freeAddress() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}

// await waits until a server listens at the address.
func await(address string) error {
	for begun := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			return conn.Close()
		}
		if time.Since(begun) > 30*time.Second {
			return err
		}
	}
}
