"""What the guide is good for: log p(x) from draws of the prior and from draws of q(z | x), which shrinks the region.

    python -m examples.proposals

Both are unbiased for p(x), but few of the prior's draws are where p(z | x) is.
"""

import torch
from matplotlib.figure import Figure

import pyrovae as pv
from pyrovae.evaluation.chunks import from_prior

SAMPLES = [2**k for k in range(0, 15, 2)]


def main() -> None:
    data = pv.data.load("digits")
    torch.manual_seed(0)
    vae = pv.VAE(data.event_shape, latent_dim=2)
    pv.fit(vae, data, max_epochs=100, seed=0, progress=False)
    vae.eval()
    test = data.test.fixed(0).select("x")
    x = next(test.sequential(1))
    for proposal in ("prior", "guide"):
        print(f"z from the {proposal}:", pv.log_likelihood(vae, test, num_samples=1000, proposal=proposal))

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    plane, curve = figure.subplots(1, 2)
    line = torch.linspace(-3.5, 3.5, 141)
    with torch.no_grad():
        z = torch.cartesian_prod(line, line)
        prior = vae.prior().log_prob(z)
        posterior = (prior + vae.likelihood(vae.decoder(z)).log_prob(x[0])).softmax(0).reshape(141, 141)
        draws = {"p(z)": from_prior(vae), "q(z | x)": vae}
        for (label, pair), color in zip(draws.items(), ("0.6", "C1"), strict=True):
            drawn = pv.ledger(pair, *x, num_particles=200).values["z"][:, 0]
            plane.scatter(*drawn.T, s=6, color=color, label=f"200 draws of {label}")
    plane.contour(line, line, posterior.T, levels=5, colors="C0", linewidths=0.8)
    plane.set(title="p(z | x) of one digit (contours)", xlabel="z[0]", ylabel="z[1]", aspect="equal")
    plane.legend(frameon=False, fontsize=8, loc="lower right")
    for (proposal, color), label in zip((("prior", "0.6"), ("guide", "C1")), draws, strict=True):
        estimates = [pv.log_likelihood(vae, test, num_samples=k, proposal=proposal) for k in SAMPLES]
        curve.semilogx(SAMPLES, [e.value for e in estimates], "o-", ms=3, color=color, label=f"z from {label}")
    curve.set(xlabel="importance samples", ylabel="nats", title="log-likelihood of 180 digits")
    curve.legend(frameon=False, fontsize=8, loc="lower right")
    print(pv.plots.save(plane, "examples/results/proposals.png"))


if __name__ == "__main__":
    main()
