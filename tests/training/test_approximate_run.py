"""A run with approximate rollouts says how far they are from the policy."""

from runs import fit, rows, write_run


def test_a_run_reports_it(tmp_path, monkeypatch):
    write_run(tmp_path, rewards=("vowels",), max_steps=2)
    monkeypatch.chdir(tmp_path)
    assert fit("--model.sampler", '{"name": "fast", "precision": "bfloat16"}') == 0
    table = rows(tmp_path / "run")
    assert 0.9 < float(table[0]["importance/mean"]) < 1.1 and float(table[0]["importance/effective"]) > 0.9
