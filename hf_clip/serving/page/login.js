"use strict";

document.getElementById("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const status = document.getElementById("status");
  const token = document.getElementById("token").value;
  try {
    const answer = await fetch("/login", { method: "POST", body: JSON.stringify({ token }) });
    if (answer.ok) {
      location.replace("/");
    } else {
      status.textContent = (await answer.json()).error.message;
    }
  } catch {
    status.textContent = "The server does not answer.";
  }
});
